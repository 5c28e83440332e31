"""The box's end of the wire: one connection, what arrives goes to its handler, what the box is goes out.

Nothing here can stop the box from answering: without a broker it waits and tries again.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from agents.enroll import Identity, Transports
from edgert.clock import Clock
from edgert.errors import EdgeRTError, LinkError
from edgert.wire import topics
from edgert.wire.link import Fetcher, Link
from edgert.wire.messages.base import Message
from edgert.wire.messages.blob import Get
from edgert.wire.messages.device import Event, Online
from edgert.wire.transports.base import Delivery, Subscription, Transport, Will
from edgert.wire.twin import Reported

__all__ = ["Handler", "Handlers", "Uplink"]

logger = logging.getLogger(__name__)

Handler = Callable[[Delivery], Awaitable[None]]
"""Takes one message; what it raises from `edgert.errors` is logged, the next message is taken."""

_EVENTS_HELD = 1000
_LONGEST_PAUSE_S = 30.0


class Handlers(Protocol):
    """What the uplink asks of the box."""

    def handlers(self) -> Mapping[str, Handler]:
        """A handler per pattern."""
        ...

    def reported(self) -> Reported:
        """What the box is now."""
        ...

    async def connected(self) -> None:
        """A (new) connection was made, all subscriptions with it."""
        ...


class Uplink:
    """See the module.

    Args:
        transports: makes the transport.
        first_pause_s: between attempts to reach the broker; it grows.
    """

    def __init__(self, identity: Identity, transports: Transports, clock: Clock, *, first_pause_s: float = 0.5) -> None:
        self._identity = identity
        self._transports = transports
        self._clock = clock
        self._first_pause_s = first_pause_s
        self._transport: Transport | None = None
        self._link: Link | None = None
        self._events: deque[Event] = deque(maxlen=_EVENTS_HELD)
        self._event_here = asyncio.Event()
        self._changed = asyncio.Event()
        self.fetcher = Fetcher(self._ask, clock)

    @property
    def traffic(self) -> tuple[int, int]:
        """Payload bytes received and sent since the start."""
        transport = self._transport
        return (0, 0) if transport is None else (transport.received_bytes, transport.sent_bytes)

    def changed(self) -> None:
        """The box is not what it last said: report soon."""
        self._changed.set()

    def tell(self, event: Event) -> None:
        """Send a phase of an update; the oldest are dropped when the broker stays away for long."""
        self._events.append(event)
        self._event_here.set()

    async def send(self, leaf: str, message: Message) -> None:
        """Send a message on one of our up topics.

        Raises:
            LinkError: not connected, or no acknowledgement in time.
        """
        await self._require_link().send(topics.device(self._identity.device, leaf), message)

    async def send_frame(self, payload: bytes) -> None:
        """Send a frame of an upload.

        Raises:
            LinkError: not connected.
        """
        await self._require_link().send_raw(topics.device(self._identity.device, "put"), payload, qos=0)

    async def run(self, box: Handlers) -> None:
        """Connect, and carry messages until cancelled."""
        device = self._identity.device
        transport = await self._connected()
        link = Link(transport, self._clock)
        self._transport, self._link = transport, link
        patterns = {topics.device(device, "data"): self._take_frame, **box.handlers()}
        try:
            async with asyncio.TaskGroup() as tasks:
                for pattern, handler in patterns.items():
                    tasks.create_task(self._listen(await self._subscribed(link, pattern), handler))
                tasks.create_task(self._greet(box, transport))
                tasks.create_task(self._report(box))
                tasks.create_task(self._send_events())
        finally:
            await self._leave(link)

    async def _connected(self) -> Transport:
        pause_s = self._first_pause_s
        will = Will(topics.device(self._identity.device, "online"), Online(online=False).encode())
        while True:
            transport = self._transports(self._identity.broker)
            try:
                await transport.connect(will)
            except LinkError as e:
                await transport.close()
                logger.warning("%s; trying again", e.message)
            else:
                return transport
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311 - jitter
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)

    async def _subscribed(self, link: Link, pattern: str) -> Subscription:
        while True:
            try:
                return await link.listen(pattern)
            except LinkError as e:
                logger.warning("%s; trying again", e.message)
                await asyncio.sleep(self._first_pause_s)

    async def _listen(self, subscription: Subscription, handler: Handler) -> None:
        async for delivery in subscription:
            try:
                await handler(delivery)
            except EdgeRTError as e:
                logger.warning("a message on %s was left out: %s", delivery.topic, e.message)

    async def _take_frame(self, delivery: Delivery) -> None:
        self.fetcher.deliver(delivery.payload)

    async def _greet(self, box: Handlers, transport: Transport) -> None:
        """After every new connection: say that we are here and what we are."""
        generation = 0
        while True:
            generation = await transport.wait_generation(generation)
            logger.info("connected to the broker as %s", self._identity.device)
            self.fetcher.lose()
            try:
                await self._publish("online", Online(online=True))
                await box.connected()
            except EdgeRTError as e:
                logger.warning("%s", e.message)
            self.changed()

    async def _report(self, box: Handlers) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._publish("state", box.reported())
            except LinkError as e:
                logger.warning("the state was not reported: %s", e.message)
                self._changed.set()
                await asyncio.sleep(self._first_pause_s)

    async def _send_events(self) -> None:
        while True:
            await self._event_here.wait()
            self._event_here.clear()
            while self._events:
                event = self._events[0]
                try:
                    await self.send("event", event)
                except LinkError as e:
                    logger.debug("an event was not sent: %s", e.message)
                    await asyncio.sleep(self._first_pause_s)
                    continue
                if self._events and self._events[0] is event:
                    self._events.popleft()

    async def _publish(self, leaf: str, message: Message) -> None:
        await self._require_link().send(topics.device(self._identity.device, leaf), message, retain=True)

    async def _leave(self, link: Link) -> None:
        """Say good-bye, if anyone listens, and disconnect."""
        try:
            async with asyncio.timeout(1.0):
                await link.send(topics.device(self._identity.device, "online"), Online(online=False), retain=True)
        except (LinkError, TimeoutError):
            logger.debug("left without a good-bye")
        await link.transport.close()

    async def _ask(self, get: Get) -> None:
        await self.send("get", get)

    def _require_link(self) -> Link:
        if self._link is None:
            raise LinkError("the broker has not been reached yet", hint="is it running? it is tried again")
        return self._link
