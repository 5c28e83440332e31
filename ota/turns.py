"""Things that many devices want, taken in turn; and the inbox of a job, which no device can fill for another."""

import asyncio
import logging
from collections import deque
from typing import Final, Generic, TypeVar

from edgert.clock import Clock
from edgert.federated.job import Event

__all__ = ["Inbox", "Turns"]

logger = logging.getLogger(__name__)

_PENDING_PER_DEVICE: Final = 32
_EVENTS_PER_DEVICE: Final = 8
_WARNING_S: Final = 10.0

_T = TypeVar("_T")


class Turns(Generic[_T]):
    """Things of many devices, taken in turn: a device that floods waits for itself alone.

    Args:
        limit: how many things of one device may wait; more are not taken.
    """

    def __init__(self, limit: int = _PENDING_PER_DEVICE) -> None:
        self._limit = limit
        self._waiting: dict[str, deque[_T]] = {}
        self._order: deque[str] = deque()
        self._some = asyncio.Event()

    def __len__(self) -> int:
        return len(self._order)

    def put(self, device: str, thing: _T) -> bool:
        """Let something wait; False when the device has too much waiting already."""
        queue = self._waiting.get(device)
        if queue is None:
            queue = self._waiting[device] = deque()
            self._order.append(device)
        if len(queue) >= self._limit:
            return False
        queue.append(thing)
        self._some.set()
        return True

    async def take(self) -> tuple[str, _T]:
        """The next thing, of the device whose last turn is longest ago."""
        while not self._order:
            self._some.clear()
            await self._some.wait()
        return self.take_now()

    def take_now(self) -> tuple[str, _T]:
        """The same, when something waits.

        Raises:
            IndexError: nothing waits.
        """
        device = self._order.popleft()
        queue = self._waiting[device]
        thing = queue.popleft()
        if queue:
            self._order.append(device)
        else:
            del self._waiting[device]
        return device, thing


class Inbox:
    """What a job has to take in: its own events first and all of them, then those of devices in turn, a few of each.

    Args:
        job: for the log.
        clock: for the pause between two warnings.
    """

    def __init__(self, job: str, clock: Clock) -> None:
        self._job = job
        self._clock = clock
        self._own: deque[Event] = deque()
        self._devices: Turns[Event] = Turns(_EVENTS_PER_DEVICE)
        self._some = asyncio.Event()
        self._dropped = 0
        self._warned_s: float | None = None

    def put(self, event: Event) -> None:
        """Let an event of the server itself wait; it is never dropped."""
        self._own.append(event)
        self._some.set()

    def put_of(self, device: str, event: Event) -> None:
        """Let an event of a device wait, unless too many of it wait already."""
        if self._devices.put(device, event):
            self._some.set()
        else:
            self._drop(device)

    async def take(self) -> tuple[str, Event]:
        """The next event and the device it comes from; no name when it is the server's own."""
        while not self._own and not self._devices:
            self._some.clear()
            await self._some.wait()
        return ("", self._own.popleft()) if self._own else self._devices.take_now()

    def _drop(self, device: str) -> None:
        self._dropped += 1
        now_s = self._clock.monotonic()
        if self._warned_s is None or now_s - self._warned_s >= _WARNING_S:
            logger.warning("job %s: dropped %d events, the last of %s", self._job, self._dropped, device)
            self._warned_s, self._dropped = now_s, 0
