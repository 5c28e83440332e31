"""The fleet's server: one event loop that owns every conversation, driven by what the database says.

Nothing that matters lives in memory: after a crash, a broker restart or a lost message the next look at the database
leads to the same place.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, NoReturn

from edgert import plugins
from edgert.errors import EdgeRTError
from edgert.wire import topics
from edgert.wire.link import Link
from edgert.wire.transports.base import Broker, Delivery, Subscription, Transport
from ota import claims
from ota.broker import SERVER_NAME
from ota.config import Home
from ota.coordinator import Coordinator
from ota.downlink import Answers, Assignments
from ota.fleet import Fleet
from ota.ingest import LEAVES, Enrolment, Ingest
from ota.store import devices

__all__ = ["make_transport", "serve"]

logger = logging.getLogger(__name__)

_LOOK_S: Final = 0.1
_UPKEEP_S: Final = 60.0


class _Stopped(Exception):  # noqa: N818  (not an error)
    """The server was asked to stop."""


def make_transport(home: Home) -> Transport:
    """The transport the settings name, as the server's own identity."""
    settings, folder = home.settings, home.authority
    broker = Broker(
        host=settings.server_host,
        port=settings.port,
        client_id=SERVER_NAME,
        ca=folder / "ca.pem",
        certificate=folder / "server.pem",
        key=folder / "server.key",
    )
    transport: Transport = plugins.load("edgert.wire.transports", settings.transport)(broker)
    return transport


async def serve(fleet: Fleet, transport: Transport, stop: asyncio.Event) -> None:
    """Run until `stop` is set.

    Raises:
        LinkError: the broker cannot be reached at the start.
        EdgeRTError: something without which the server is of no use failed for good.
    """
    await asyncio.to_thread(fleet.repository.refresh)
    await transport.connect()
    try:
        await _Server(fleet, transport).run(stop)
    except BaseExceptionGroup as group:
        failed = group.split(_Stopped)[1]
        if failed is not None:
            raise _plain(failed) from failed
        logger.info("stopped")
    finally:
        await transport.close()


class _Server:
    def __init__(self, fleet: Fleet, transport: Transport) -> None:
        self._fleet = fleet
        self._transport = transport
        self._link = Link(transport, fleet.clock)
        self._assignments = Assignments(fleet, self._link)
        self._answers = Answers(fleet, self._link)
        self._ingest = Ingest(fleet)
        self._enrolment = Enrolment(fleet, self._link)
        self._coordinator = Coordinator(fleet, self._link)
        self._look = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ingest.run(), name="ingest")
            group.create_task(self._answers.run(), name="answers")
            group.create_task(self._coordinator.run(), name="coordinator")
            await self._subscribe(group)
            group.create_task(self._reconcile(), name="reconcile")
            group.create_task(self._upkeep(), name="upkeep")
            logger.info("serving %s through %s", self._fleet.home.root, self._fleet.home.settings.server_host)
            group.create_task(_stop(stop), name="stop")

    async def _subscribe(self, group: asyncio.TaskGroup) -> None:
        for leaf in LEAVES:
            subscription = await self._link.listen(topics.every_device(leaf))
            group.create_task(self._ingest.listen(subscription), name=f"listen {leaf}")
        for leaf, take in (("put", self._coordinator.deliver), ("fl/out", self._coordinator.hear)):
            subscription = await self._link.listen(topics.every_device(leaf), qos=0 if leaf == "put" else 1)
            group.create_task(_each(subscription, take), name=f"listen {leaf}")
        subscription = await self._link.listen(topics.every_device("get"))
        group.create_task(_each(subscription, self._answers.ask), name="listen get")
        group.create_task(self._enrolment.run(await self._link.listen(topics.CLAIM_REQUESTS)), name="enrolment")

    async def _reconcile(self) -> None:
        generation, seen = -1, -1
        while True:
            version = self._fleet.database.version()
            if version != seen or self._transport.generation != generation or self._look.is_set():
                self._look.clear()
                everything = self._transport.generation != generation
                seen, generation = version, self._transport.generation
                self._answers.known = await asyncio.to_thread(self._known)
                await self._assignments.publish(everything=everything)
                await self._coordinator.reconcile(everything=everything)
            await asyncio.sleep(_LOOK_S)

    async def _upkeep(self) -> None:
        pause_s = min(_UPKEEP_S, self._fleet.home.settings.timestamp_days * 86_400 / 8)
        while True:
            if await asyncio.to_thread(self._fleet.repository.refresh):
                logger.info("signed the repository's metadata again")
            await asyncio.to_thread(claims.update_broker, self._fleet)
            self._look.set()
            await asyncio.sleep(pause_s)

    def _known(self) -> frozenset[str]:
        with self._fleet.database.read() as session:
            return devices.names(session)


async def _each(subscription: Subscription, take: Callable[[Delivery], None]) -> None:
    async for delivery in subscription:
        try:
            take(delivery)
        except Exception:
            logger.exception("ignored a message on %s", delivery.topic)


async def _stop(stop: asyncio.Event) -> NoReturn:
    await stop.wait()
    raise _Stopped


def _plain(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of our own, if nothing else failed: one line for the operator, not a tree of tasks."""
    if failed.split(EdgeRTError)[1] is not None:
        return failed
    error: BaseException = failed
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
