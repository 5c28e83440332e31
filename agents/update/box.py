"""What the update machines of one box work with: a store, the way to the fleet, something that answers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from edgert.bundle import Bundle
from edgert.clock import Clock, SystemClock
from edgert.store import Store
from edgert.trial import Verdict
from edgert.wire.fleet import FleetKeys
from edgert.wire.messages import device
from edgert.wire.twin import Assignment

__all__ = ["Authority", "Blobs", "Box", "Keys", "Loader"]


class Authority(Protocol):
    """Says what is released (`agents.update.trust`)."""

    async def image(self, assignment: Assignment) -> bytes:
        """The verified OCI image manifest that the assignment names.

        Raises:
            RefusedError: the metadata or the image is not what the fleet signed.
            WireError: the server could not be asked.
        """
        ...


class Blobs(Protocol):
    """Brings blobs from the server (`edgert.wire.link.Fetcher`)."""

    async def fetch_bytes(self, name: str, *, limit_bytes: int, deadline_s: float = 30) -> bytes: ...

    async def fetch_blob(
        self,
        store: Store,
        digest: str,
        size_bytes: int,
        *,
        progress: Callable[[int, int], None] | None = None,
        deadline_s: float | None = None,
    ) -> None: ...


class Keys(Protocol):
    """Names the keys of envelopes (`agents.update.trust`)."""

    async def fleet_keys(self) -> FleetKeys:
        """As the fleet signed them last; asks the server.

        Raises:
            RefusedError: the metadata is not what the fleet signed.
            WireError: the server could not be asked.
        """
        ...

    async def known_keys(self) -> FleetKeys:
        """The last that were seen, without asking when there are any."""
        ...


class Loader(Protocol):
    """Makes a bundle answer (`edgert.serving.worker.Worker`)."""

    async def load(self, model: str, version: int, digest: str) -> None: ...


@dataclass(frozen=True)
class Box:
    """What the machines of one box work with.

    Args:
        profiles, socs, model_bytes: see `agents.update.plan.Fit`.
        trial: runs the best artifact of a bundle in a child process; called in a thread.
        tell: takes every phase and progress, for the server.
        changed: called when a state changed, so that the box reports itself.
        activated: called when another bundle answers.
        retry_s: first pause after a passing trouble; it doubles up to 60 times as long.
    """

    store: Store
    authority: Authority
    blobs: Blobs
    loader: Loader
    trial: Callable[[Store, Bundle], Verdict]
    profiles: tuple[str, ...]
    socs: tuple[str, ...] = ()
    model_bytes: int | None = None
    tell: Callable[[device.Event], None] = lambda event: None
    changed: Callable[[], None] = lambda: None
    activated: Callable[[str], None] = lambda model: None
    clock: Clock = field(default_factory=SystemClock)
    retry_s: float = 15.0
