"""What goes down to devices: the signed assignment of each, and the ranges of blobs they ask for."""

import asyncio
import logging
from collections.abc import Collection
from datetime import timedelta
from typing import Final

from edgert.errors import LinkError, MessageError
from edgert.wire import topics
from edgert.wire.chunks import StoreSource, answer, busy
from edgert.wire.link import Link
from edgert.wire.messages.blob import Frame, Get
from edgert.wire.transports.base import Delivery
from ota import keys
from ota.devices import sign_desired
from ota.fleet import Fleet
from ota.store import devices
from ota.turns import Turns

__all__ = ["Answers", "Assignments"]

logger = logging.getLogger(__name__)

_WORKERS: Final = 4
_REFUSALS: Final = 64
_SENDS_AT_ONCE: Final = 16


class Assignments:
    """Keeps ``d/{id}/desired`` of every device equal to what the database says.

    A new revision is signed, then written down, then published; one that is older than half of its life is signed
    again under the same revision.

    Args:
        fleet: the database and the key.
        link: to the broker.
    """

    def __init__(self, fleet: Fleet, link: Link) -> None:
        self._fleet = fleet
        self._link = link
        self._key = keys.envelope_key(fleet.home.keys, "assignment")
        self._unsent: dict[str, bytes] = {}

    async def publish(self, *, everything: bool) -> None:
        """Send what changed; what cannot be sent now is sent by the next call.

        Args:
            everything: send all of it, because the broker may have lost it.
        """
        self._unsent |= await asyncio.to_thread(self._due, everything)
        limit = asyncio.Semaphore(_SENDS_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for device, envelope in list(self._unsent.items()):
                group.create_task(self._send(limit, device, envelope))

    async def _send(self, limit: asyncio.Semaphore, device: str, envelope: bytes) -> None:
        async with limit:
            try:
                await self._link.send_raw(topics.device(device, "desired"), envelope, retain=True)
            except LinkError as e:
                logger.warning("could not send the assignment of %s: %s", device, e)
            else:
                self._unsent.pop(device, None)
                logger.debug("sent the assignment of %s", device)

    def _due(self, everything: bool) -> dict[str, bytes]:
        now, days = self._fleet.clock.now(), self._fleet.home.settings.desired_days
        oldest = now - timedelta(days=days / 2)
        with self._fleet.database.read() as session:
            if not everything and not devices.worn(session, oldest):
                return {}
        with self._fleet.database.write() as session:
            signed = {}
            for row in devices.worn(session, oldest):
                signed[row.id] = sign_desired(row, self._key, now, timedelta(days=days))
                logger.info("signed revision %d for device %s", row.revision, row.id)
            rows = devices.every(session) if everything else ()
            return {row.id: row.envelope for row in rows if row.envelope is not None} | signed


class Answers:
    """Answers ``d/+/get`` of known devices with frames on ``d/{id}/data``.

    A device that asks for more than it may have waiting is told to ask again later.

    Args:
        fleet: its store and metadata folder; nothing else can be asked for.
        link: to the broker.
    """

    def __init__(self, fleet: Fleet, link: Link) -> None:
        self._link = link
        self._source = StoreSource(fleet.store, fleet.home.metadata)
        self._turns: Turns[Get] = Turns()
        self._refused: asyncio.Queue[tuple[str, Get]] = asyncio.Queue(_REFUSALS)
        self.known: Collection[str] = frozenset()

    def ask(self, delivery: Delivery) -> None:
        """Take in a request; the device is the one in the topic, and so is the topic of the answer."""
        try:
            device, _ = topics.device_of(delivery.topic)
            get = Get.decode(delivery.payload)
        except MessageError as e:
            logger.debug("ignored a request on %s: %s", delivery.topic, e)
            return
        if device not in self.known:
            logger.debug("ignored a request of unknown device %s", device)
        elif not self._turns.put(device, get):
            logger.debug("put off a request of %s: too many are waiting", device)
            if not self._refused.full():
                self._refused.put_nowait((device, get))

    async def run(self) -> None:
        """Answer until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(_WORKERS):
                group.create_task(self._work())
            group.create_task(self._refuse())

    async def _work(self) -> None:
        while True:
            device, get = await self._turns.take()
            try:
                await self._send(device, await asyncio.to_thread(answer, get, self._source))
            except Exception:
                logger.exception("could not answer a request of %s", device)

    async def _refuse(self) -> None:
        while True:
            device, get = await self._refused.get()
            await self._send(device, busy(get))

    async def _send(self, device: str, frame: Frame) -> None:
        try:
            await self._link.send_raw(topics.device(device, "data"), frame.encode(), qos=0)
        except LinkError as e:
            logger.debug("could not answer %s: %s", device, e)
