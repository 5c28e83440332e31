"""What a box keeps: content-addressed blobs, and per model two slots of which one is active.

::

    blobs/sha256/<hex>           verified content, never changed
    partial/<hex>                a download on its way, and <hex>.have: which chunks are durable
    models/<model>/A.json B.json slots: {"digest": ..., "version": ...}: a slot is a pointer, A/B costs no copy
    models/<model>/active        "A" or "B": switching is one durable rename
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgert.bundle import Bundle, parse_image
from edgert.errors import BundleError, StoreError, UsageError
from edgert.files import fsync_folder, write_durable
from edgert.manifest import Digest
from edgert.values import digest as digest_of
from edgert.values import digest_file, is_name

__all__ = ["Slot", "SlotName", "Store"]

SlotName = Literal["A", "B"]


class Slot(BaseModel):
    """A pointer to a bundle in the store."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    digest: Digest
    version: int = Field(ge=1)


class Store:
    """A folder with blobs and slots. One process writes, any number read.

    Args:
        root: made when it does not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs" / "sha256"
        self._partial = root / "partial"
        with _translated(root):
            self._blobs.mkdir(parents=True, exist_ok=True)
            self._partial.mkdir(exist_ok=True)

    # Blobs

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be."""
        return self._blobs / _hex(digest)

    def has(self, digest: str) -> bool:
        """Whether the blob is here (it was verified when it was added)."""
        return self.path(digest).is_file()

    def read(self, digest: str) -> bytes:
        """The blob, verified again.

        Raises:
            BundleError: missing or damaged.
        """
        try:
            data = self.path(digest).read_bytes()
        except FileNotFoundError as e:
            raise BundleError(f"the store lacks blob {digest}") from e
        except OSError as e:
            raise StoreError(f"cannot read blob {digest}: {e.strerror}") from e
        if digest_of(data) != digest:
            raise BundleError(f"blob {digest} in the store is damaged")
        return data

    def add(self, data: bytes) -> str:
        """Keep `data` durably; returns its digest."""
        digest = digest_of(data)
        if not self.has(digest):
            write_durable(self.path(digest), data)
        return digest

    def ingest(self, bundle: Bundle) -> None:
        """Keep every blob of a bundle; the image comes last, so that it is here only when all of it is.

        Raises:
            BundleError: a blob of the bundle is missing or damaged.
            StoreError: the disk is full or read-only.
        """
        image = bundle.blobs.read(bundle.digest)
        for digest in parse_image(image).blobs():
            if not self.has(digest):
                self.add(bundle.blobs.read(digest))
        self.add(image)

    def partial(self, digest: str) -> Path:
        """The file a download of that blob is written to; its bitmap is beside it (suffix ``.have``)."""
        return self._partial / _hex(digest)

    def adopt(self, digest: str) -> None:
        """Verify a finished download and make it a blob; a wrong one is thrown away.

        Raises:
            BundleError: the content does not have that digest.
            StoreError: the disk failed.
        """
        partial = self.partial(digest)
        with _translated(partial):
            if digest_file(partial) != digest:
                self.drop_partial(digest)
                raise BundleError(
                    f"the downloaded bytes are not blob {digest}", hint="the sender or the way damaged them"
                )
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(self.path(digest))
            fsync_folder(self._blobs)
            self.drop_partial(digest)

    def drop_partial(self, digest: str) -> None:
        """Forget a download."""
        self.partial(digest).unlink(missing_ok=True)
        self.partial(digest).with_suffix(".have").unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Room left on the disk."""
        return shutil.disk_usage(self.root).free

    # Slots

    def models(self) -> list[str]:
        """Names of the models that have an active slot."""
        folder = self.root / "models"
        return sorted(path.parent.name for path in folder.glob("*/active")) if folder.is_dir() else []

    def active(self, model: str) -> SlotName | None:
        """Which slot answers, or None before the first model."""
        try:
            text = (self._model(model) / "active").read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            text = ""
        if text in ("A", "B"):
            return "A" if text == "A" else "B"
        raise StoreError(f"the slot pointer of model {model} is damaged")

    def spare(self, model: str) -> SlotName:
        """The slot that may be overwritten."""
        return "B" if self.active(model) == "A" else "A"

    def slot(self, model: str, name: SlotName) -> Slot | None:
        """What a slot points to, or None when it is empty."""
        try:
            return Slot.model_validate_json((self._model(model) / f"{name}.json").read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as e:
            raise StoreError(f"slot {name} of model {model} is damaged", hint="assign the model again") from e

    def active_slot(self, model: str) -> Slot | None:
        """What answers now, or None before the first model."""
        name = self.active(model)
        return None if name is None else self.slot(model, name)

    def stage(self, model: str, slot: Slot) -> SlotName:
        """Point the spare slot at a bundle whose blobs are all here; returns its name."""
        name = self.spare(model)
        write_durable(self._model(model) / f"{name}.json", slot.model_dump_json().encode())
        return name

    def switch(self, model: str, name: SlotName) -> None:
        """Make a slot the active one: one durable rename.

        Raises:
            StoreError: the slot is empty.
        """
        if self.slot(model, name) is None:
            raise StoreError(f"slot {name} of model {model} is empty")
        write_durable(self._model(model) / "active", name.encode())

    def bundle(self, slot: Slot) -> Bundle:
        """The bundle a slot points to."""
        return Bundle.load(self, slot.digest)

    def collect(self) -> list[str]:
        """Remove every blob that no slot needs; returns their digests.

        Raises:
            StoreError: a slot is damaged, so nobody can say what it needs; nothing is removed.
        """
        needed: set[str] = set()
        names: tuple[SlotName, ...] = ("A", "B")
        slots = [self.slot(folder.name, name) for folder in (self.root / "models").glob("*/") for name in names]
        for slot in filter(None, slots):
            needed |= {slot.digest}
            if self.has(slot.digest):
                needed |= set(parse_image(self.read(slot.digest)).blobs())
        gone = [path for path in self._blobs.iterdir() if f"sha256:{path.name}" not in needed]
        for path in gone:
            path.unlink()
        return [f"sha256:{path.name}" for path in gone]

    def _model(self, model: str) -> Path:
        if not is_name(model):
            raise UsageError(f"{model[:80]!r} cannot name a model", hint="lower-case letters, digits, '.', '_' and '-'")
        return self.root / "models" / model


def _hex(digest: str) -> str:
    kind, _, value = digest.partition(":")
    if kind != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise UsageError(f"{digest[:80]!r} is not a digest")
    return value


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise StoreError(f"cannot write {path}: {e.strerror or e}", hint="check the disk and its permissions") from e
