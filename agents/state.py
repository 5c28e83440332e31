"""What an agent remembers over power cuts: who it is, which assignment it follows, the latest time that is proven.

::

    identity/key.pem request.pem     made on the box, before anything is asked; 0600
    identity/certificate.pem         given by the fleet
    identity/ca.pem root.json device.json      copied from the kit: the broker, our name, the pinned TUF root
    state.json                       the last accepted Desired, and the proven time
    tuf/                             metadata of python-tuf
    store/                           blobs and slots
    journal/<model>.json             where the update of each model stands
    federated/                       updates on offer
    control/                         requests of the command line to a running agent
"""

import asyncio
import fcntl
import logging
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from edgert.errors import FaultError, StoreError
from edgert.files import write_durable
from edgert.wire.twin import Desired

__all__ = ["Memory", "StateFolder"]

logger = logging.getLogger(__name__)

_ATTEMPTS = 5
_MOMENT_S = 0.02


class Memory(BaseModel):
    """What `state.json` holds.

    Args:
        profile: the kind of box it last ran as, for ``edgert agent status``.
        desired: the last accepted assignment, or None.
        not_before: the latest time a verified signature proved; time never goes back behind it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    format: Literal[1] = 1
    profile: str = ""
    desired: Desired | None = None
    not_before: AwareDatetime | None = None

    @property
    def revision(self) -> int:
        """Of the last accepted assignment; 0 before the first."""
        return 0 if self.desired is None else self.desired.revision

    def proven(self, now: datetime) -> datetime:
        """The time to judge expiry with: the clock's, but never behind what signatures have proved."""
        return now if self.not_before is None else max(now, self.not_before)

    def accepted(self, desired: Desired) -> "Memory":
        """With `desired` as the last accepted assignment; its time of issue is proven by its signature."""
        issued = desired.issued if self.not_before is None else max(self.not_before, desired.issued)
        return self.model_copy(update={"desired": desired, "not_before": issued})


class StateFolder:
    """The folder of one agent.

    Args:
        root: made when it does not exist; it and what is in it are closed to others.

    Raises:
        StoreError: there is no such folder and none can be made. A disk that is full or read-only is a warning: a box
            whose slot is good answers from it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.identity = root / "identity"
        self.tuf = root / "tuf"
        self.store = root / "store"
        self.journal = root / "journal"
        self.federated = root / "federated"
        self.control = root / "control"
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            ours = self.identity.is_dir() or not any(root.iterdir())
        except OSError as e:
            raise StoreError(f"cannot use {root}: {e.strerror}", hint="check --state, the disk and its rights") from e
        if ours:  # what others keep in a folder stays as open as they left it
            _closed(root)
        for folder in (self.identity, self.tuf, self.store, self.journal, self.federated, self.control):
            _closed(folder)

    def memory(self) -> Memory:
        """What was remembered last; empty when there is nothing or it is damaged.

        A damaged file costs nothing but the protection against an older assignment until the next one arrives.
        """
        path = self.root / "state.json"
        try:
            return Memory.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return Memory()
        except (OSError, ValidationError) as e:
            logger.error("%s is damaged and was left out: %s", path, type(e).__name__)
            return Memory()

    def remember(self, memory: Memory) -> None:
        """Keep `memory` durably.

        Raises:
            StoreError: the disk is full or read-only.
        """
        write_durable(self.root / "state.json", memory.model_dump_json().encode(), mode=0o600)

    @contextmanager
    def locked(self, pause: Callable[[float], object]) -> Iterator[None]:
        """Hold the folder for one process.

        Args:
            pause: waits some seconds; someone who only looks holds the lock for a moment.

        Raises:
            FaultError: an agent runs on it.
            StoreError: there is no lock file and none can be made.
        """
        with self._lock_file() as handle:
            for _ in range(_ATTEMPTS):
                if _taken(handle):
                    break
                pause(_MOMENT_S)
            else:
                raise self._busy()
            yield

    @asynccontextmanager
    async def owned(self) -> AsyncIterator[None]:
        """`locked` for an event loop, which goes on while the lock is waited for."""
        with self._lock_file() as handle:
            for _ in range(_ATTEMPTS):
                if _taken(handle):
                    break
                await asyncio.sleep(_MOMENT_S)
            else:
                raise self._busy()
            yield

    def held(self) -> bool:
        """Whether an agent runs on the folder."""
        with self._lock_file() as handle:
            return not _taken(handle, fcntl.LOCK_SH)

    def _busy(self) -> FaultError:
        return FaultError(f"an agent is running on {self.root}", hint="stop it first, or give another --state folder")

    @contextmanager
    def _lock_file(self) -> Iterator[int]:
        handle = _opened(self.root / "lock")
        try:
            yield handle
        finally:
            os.close(handle)


def _closed(folder: Path) -> None:
    """Make `folder` when there is none, and close it to others; a disk that refuses is logged."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:
            folder.chmod(0o700)
    except OSError as e:
        logger.warning("%s cannot be made and closed to others: %s", folder, e.strerror)


def _opened(path: Path) -> int:
    """The lock file; one that is there can be locked on a read-only disk, too."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        with suppress(OSError):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        raise StoreError(
            f"cannot lock {path.parent}: {e.strerror}", hint="check the disk, and who may write the folder"
        ) from e


def _taken(handle: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Whether the lock is ours now; of kind ``LOCK_SH`` it is shared with others who only look."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
