"""Updates on offer: durable until the coordinator has them or the round is over; nothing else is given away."""

import logging
from datetime import datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from edgert.errors import StoreError
from edgert.files import write_durable
from edgert.manifest import Digest
from edgert.store import Store
from edgert.wire.chunks import StoreSource
from edgert.wire.messages.federated import Invite, Offer

__all__ = ["Offers"]

logger = logging.getLogger(__name__)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    offer: Offer
    weights: Digest
    expires: AwareDatetime


class Offers:
    """At most one offer per job, in a folder with a store of its own; the source of the uploads.

    Args:
        folder: of one box.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store: Store | None = None
        self._records = {record.offer.job: record for record in map(_read, folder.glob("*.json")) if record}

    @property
    def store(self) -> Store:
        """Of the updates, and of weights on their way here; made when first needed, for a disk may refuse.

        Raises:
            StoreError: the disk is full or read-only.
        """
        if self._store is None:
            self._store = Store(self._folder / "store")
        return self._store

    def all(self) -> list[Offer]:
        """Every offer that stands."""
        return [record.offer for record in self._records.values()]

    def find(self, invite: Invite) -> Offer | None:
        """The offer that answers an invitation already."""
        record = self._records.get(invite.job)
        if record is None or record.offer.round != invite.round or record.weights != invite.weights:
            return None
        return record.offer

    def keep(self, invite: Invite, update: bytes, *, examples: int, loss: float, expires: datetime) -> Offer:
        """Make the update of a round durable; it takes the place of the one before.

        Raises:
            StoreError: the disk is full or read-only.
        """
        self.drop(invite.job)
        offer = Offer(
            job=invite.job,
            round=invite.round,
            update=self.store.add(update),
            update_bytes=len(update),
            examples=examples,
            loss=loss,
        )
        record = _Record(offer=offer, weights=invite.weights, expires=expires)
        write_durable(self._path(invite.job), record.model_dump_json().encode(), mode=0o600)
        self._records[invite.job] = record
        return offer

    def drop(self, job: str, up_to: int | None = None) -> None:
        """Forget the offer of a job, if its round is not after `up_to`."""
        record = self._records.get(job)
        if record is None or (up_to is not None and record.offer.round > up_to):
            return
        del self._records[job]
        try:
            self._path(job).unlink(missing_ok=True)
            self.store.path(record.offer.update).unlink(missing_ok=True)
        except (OSError, StoreError) as e:
            logger.warning("the update of job %s stays on the disk: %s", job, e)

    def arrived(self, name: str) -> None:
        """The coordinator has that update."""
        for job, record in list(self._records.items()):
            if record.offer.update == name:
                self.drop(job)

    def expire(self, now: datetime) -> None:
        """Forget offers of jobs that are over."""
        for job, record in list(self._records.items()):
            if now >= record.expires:
                self.drop(job)

    def make_room(self, wanted: str) -> None:
        """Remove what is neither on offer nor `wanted`: weights of earlier rounds, whole or on their way.

        Args:
            wanted: digest of the weights that are fetched next.

        Raises:
            StoreError: the disk is read-only.
        """
        store = self.store
        keep = [wanted, *(record.offer.update for record in self._records.values())]
        kept = {path.name for digest in keep for path in (store.path(digest), store.partial(digest))}
        try:
            for path in (*store.path(wanted).parent.iterdir(), *store.partial(wanted).parent.iterdir()):
                if path.stem not in kept:
                    path.unlink(missing_ok=True)
        except OSError as e:
            raise StoreError(f"cannot tidy {store.root}: {e.strerror}", hint="check the disk") from e

    # The source of uploads, see `edgert.wire.chunks.Source`

    def size(self, name: str) -> int | None:
        """Size in bytes of an offered update; None for everything else."""
        return StoreSource(self.store).size(name) if self._offered(name) else None

    def read(self, name: str, offset: int, length: int) -> bytes:
        """A range of an offered update."""
        if not self._offered(name):
            raise StoreError("that is not on offer", hint="it may be of a round that is over")
        return StoreSource(self.store).read(name, offset, length)

    def _offered(self, name: str) -> bool:
        return any(record.offer.update == name for record in self._records.values())

    def _path(self, job: str) -> Path:
        return self._folder / f"{job}.json"


def _read(path: Path) -> _Record | None:
    try:
        return _Record.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        logger.warning("%s is damaged and was left out", path.name)
        return None
