"""What the fleet wants of this box: only a Desired that a fleet key signed for it, newer than the last, is followed.

Hostile messages change nothing but the `refusal` that is reported; what was accepted is durable before it is followed.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple, Protocol

from agents.state import Memory
from agents.update.box import Keys
from edgert.envelope import DESIRED_TYPE, verify
from edgert.errors import EdgeRTError, MessageError, RefusedError
from edgert.wire.twin import Desired, accept

__all__ = ["Assignments", "Memories", "Refusal"]

logger = logging.getLogger(__name__)


class Memories(Protocol):
    """Remembers (`agents.state.StateFolder`)."""

    def memory(self) -> Memory: ...

    def remember(self, memory: Memory) -> None: ...


class Refusal(NamedTuple):
    """Why the last assignment was not followed; empty when it was."""

    error: str = ""
    hint: str = ""


class Assignments:
    """A mailbox of one: the newest Desired is judged, again after a pause when the fleet's keys cannot be had.

    Args:
        device: our name.
        follow: called with every accepted Desired, also the remembered one at the start.
        changed: called when `refusal` changed.
        now: the clock's time.
        retry_s: first pause; it doubles up to 64 times as long.
    """

    def __init__(
        self,
        device: str,
        keys: Keys,
        memories: Memories,
        *,
        follow: Callable[[Desired], None],
        changed: Callable[[], None],
        now: Callable[[], datetime],
        retry_s: float = 2.0,
    ) -> None:
        self._device = device
        self._keys = keys
        self._memories = memories
        self._follow = follow
        self._changed = changed
        self._now = now
        self._retry_s = retry_s
        self._payload: bytes | None = None
        self._followed: bytes | None = None
        self._arrived = asyncio.Event()
        self.refusal = Refusal()

    def receive(self, payload: bytes) -> None:
        """Take a message as it arrived; an empty one says nothing, nor does the one that is followed already."""
        if payload and (payload != self._followed or self.refusal != Refusal()):
            self._payload = payload
            self._arrived.set()

    async def run(self) -> None:
        """Follow what was accepted before, then judge what arrives, until cancelled."""
        self._follow_remembered()
        pause_s: float | None = None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._arrived.wait()
            if self._arrived.is_set():
                self._arrived.clear()
                pause_s = None
            longer_s = self._retry_s if pause_s is None else min(2 * pause_s, 64 * self._retry_s)
            again = self._payload is not None and await self._judge(self._payload)
            pause_s = longer_s if again else None

    def _follow_remembered(self) -> None:
        memory = self._memories.memory()
        if memory.desired is not None:
            self._follow(memory.desired)

    async def _judge(self, payload: bytes) -> bool:
        """Whether it must be judged again later."""
        try:
            keys = await self._keys.fleet_keys()
        except EdgeRTError as e:
            self._refuse(e)
            return True
        try:
            desired = Desired.decode(verify(payload, DESIRED_TYPE, keys.for_assignment()))
            memory = self._memories.memory()
            accept(desired, device=self._device, revision=memory.revision, now=memory.proven(self._now()))
            await asyncio.to_thread(self._memories.remember, memory.accepted(desired))
        except (RefusedError, MessageError) as e:
            self._refuse(e)
            return False
        except EdgeRTError as e:
            self._refuse(e)
            return True
        if self.refusal != Refusal():
            self.refusal = Refusal()
            self._changed()
        logger.info("follows assignment %s", desired.revision)
        self._followed = payload
        self._follow(desired)
        self._changed()
        return False

    def _refuse(self, error: EdgeRTError) -> None:
        logger.warning("an assignment was not followed: %s", error.message)
        refusal = Refusal(error.message, error.hint)
        if refusal != self.refusal:
            self.refusal = refusal
            self._changed()
