"""A transport that outlives its connections: dials again, subscribes again, sends again what was not acknowledged.

The connection itself is the plug-in's: anything that has the methods of :class:`Connection`. Everything here runs in
the event loop.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final, NamedTuple, Protocol

from edgert.errors import LinkError, UsageError
from edgert.wire.transports.base import Delivery, Subscription, Will, check_message, matches

__all__ = [
    "DEFAULT_PAUSES",
    "Arrived",
    "Connection",
    "Dial",
    "Filter",
    "Pauses",
    "Reconnecting",
    "WrongVersionError",
    "overlap",
]

logger = logging.getLogger(__name__)

_REDIAL_TIMEOUT_S: Final = 10.0
_STABLE_S: Final = 10.0
_VERSION_TIMEOUT_S: Final = 4.0

Arrived = Callable[[Delivery, int, list[int]], None]
"""Called for each message with its QoS and the identifiers of the filters it matched (empty: not known)."""


class WrongVersionError(Exception):
    """The other side does not speak this version of the protocol."""


class Pauses(NamedTuple):
    """Seconds between attempts to connect again; they double, with jitter, from the first to the longest."""

    first_s: float = 0.2
    longest_s: float = 30.0


DEFAULT_PAUSES: Final = Pauses()


@dataclass(slots=True)
class Filter:
    """A pattern this process subscribed to, once, for any number of iterators."""

    pattern: str
    ident: int
    qos: int
    listeners: list[Subscription] = field(default_factory=list)


class Connection(Protocol):
    """One connection from its making to its end."""

    ended: asyncio.Future[str]
    """Why it ended, when it has."""
    taken_over: bool
    """Whether it ended because somebody else came with our name."""
    tells_filters: bool
    """Whether messages say which filters they matched."""

    async def open(self) -> None:
        """Connect. Raises LinkError, or WrongVersionError: dial with the next version."""
        ...

    async def subscribe(self, entry: Filter) -> None:
        """Subscribe and wait for the answer. Raises LinkError."""
        ...

    def unsubscribe(self, pattern: str) -> None:
        """End a subscription."""
        ...

    def send(self, topic: str, payload: bytes, retain: bool, done: asyncio.Future[None] | None) -> bool:
        """Queue a message; `done` learns of its acknowledgement, None asks for none. Returns whether it was queued."""
        ...

    async def room(self, size_bytes: int) -> bool:
        """Wait until `size_bytes` may be queued; False when that takes too long or the connection ends."""
        ...

    async def close(self) -> None:
        """Say good-bye; bounded."""
        ...

    def abandon(self) -> None:
        """Leave it to end by itself, without a good-bye."""
        ...


Dial = Callable[[Will | None, Arrived, float], Connection]
"""Makes a connection, not open yet; the last argument is its time limit in seconds."""


@dataclass(slots=True)
class _Outgoing:
    topic: str
    payload: bytes
    retain: bool
    done: asyncio.Future[None]


class Reconnecting:
    """What is common to transports over a network; see `edgert.wire.transports.base.Transport` for the methods.

    Args:
        where: names the broker in messages.
        dials: one for each version of the protocol, the best first; the first that works is kept.
        ack_timeout_s: how long a QoS 1 message or a subscription waits for its acknowledgement.
        pauses: between attempts. They start over only after a connection that lasted, so that two clients with one
            name do not throw each other off in a tight loop.
    """

    def __init__(self, where: str, dials: list[Dial], *, ack_timeout_s: float, pauses: Pauses) -> None:
        self.generation = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self._where = where
        self._dials = dials
        self._ack_timeout_s = ack_timeout_s
        self._pauses = pauses
        self._will: Will | None = None
        self._connection: Connection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False
        self._changed = asyncio.Event()
        self._filters: dict[str, Filter] = {}
        self._tells_filters = False
        self._last_ident = 0
        self._outbox: dict[int, _Outgoing] = {}
        self._last_outgoing = 0

    async def connect(self, will: Will | None = None, timeout_s: float = 10.0) -> None:
        if self._keeper is not None or self._closed:
            raise UsageError("this transport was connected already")
        self._will = will
        await self._open(timeout_s)
        self._keeper = asyncio.create_task(self._keep(), name="reconnection")

    async def wait_generation(self, after: int) -> int:
        while self.generation <= after:
            self._require_open()
            await self._changed.wait()
        return self.generation

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1) -> None:
        self._require_open()
        check_message(topic, payload)
        if qos == 0:
            await self._publish_once(topic, payload, retain)
            return
        loop = asyncio.get_running_loop()
        outgoing = _Outgoing(topic, payload, retain, loop.create_future())
        self._last_outgoing = number = self._last_outgoing + 1
        self._outbox[number] = outgoing
        try:
            self._send(outgoing)
            async with asyncio.timeout(self._ack_timeout_s):
                await outgoing.done
        except TimeoutError as e:
            raise self._late(f"a message on {topic}") from e
        finally:
            del self._outbox[number]

    async def subscribe(self, pattern: str, *, qos: int = 1) -> Subscription:
        self._require_open()
        entry = self._filters.get(pattern)
        if entry is None:
            self._refuse_overlap(pattern)
            self._last_ident += 1
            entry = self._filters[pattern] = Filter(pattern, self._last_ident, qos)
        entry.qos = max(entry.qos, qos)
        subscription = Subscription(pattern, self._unsubscribe)
        entry.listeners.append(subscription)
        try:
            async with asyncio.timeout(self._ack_timeout_s):
                await self._granted(entry)
        except TimeoutError as e:
            await subscription.aclose()
            raise self._late(f"the subscription to {pattern}") from e
        except BaseException:
            await subscription.aclose()
            raise
        return subscription

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._announce()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        for outgoing in self._outbox.values():
            if not outgoing.done.done():
                outgoing.done.set_exception(LinkError("the connection was closed"))
        for entry in self._filters.values():
            for subscription in entry.listeners:
                subscription.finish()
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _open(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._handshake(timeout_s)
                await self._subscribe_all(connection)
        except TimeoutError as e:
            raise LinkError(
                f"{self._where} did not answer in {timeout_s:g} s", hint="is it running, and reachable?"
            ) from e
        self._connection = connection
        self.generation += 1
        self._announce()
        logger.info("connected to %s", self._where)
        for outgoing in self._outbox.values():
            self._send(outgoing)

    async def _handshake(self, timeout_s: float) -> Connection:
        for dial in self._dials:
            last = dial is self._dials[-1]
            connection = dial(self._will, self._arrived, timeout_s)
            try:
                async with asyncio.timeout(None if last else min(_VERSION_TIMEOUT_S, timeout_s / 2)):
                    await connection.open()
            except (WrongVersionError, TimeoutError) as e:
                logger.info("%s does not take this version of the protocol: %s", self._where, e or "no answer")
                connection.abandon()
            except BaseException:
                connection.abandon()
                raise
            else:
                self._dials = [dial]
                self._tells_filters = connection.tells_filters
                return connection
        raise LinkError(f"{self._where} speaks no version of MQTT that we know", hint="is it an MQTT broker?")

    async def _subscribe_all(self, connection: Connection) -> None:
        done: set[str] = set()
        try:
            while missing := [entry for name, entry in self._filters.items() if name not in done]:
                for subscription in missing[0].listeners:
                    subscription.renew()
                done.add(missing[0].pattern)
                await self._subscribe_again(connection, missing[0])
        except BaseException:
            connection.abandon()
            raise

    async def _subscribe_again(self, connection: Connection, entry: Filter) -> None:
        try:
            await connection.subscribe(entry)
        except LinkError as e:
            if connection.ended.done():
                raise
            logger.warning("lost the subscription to %s: %s", entry.pattern, e)

    def _arrived(self, delivery: Delivery, qos: int, idents: list[int]) -> None:
        self.received_bytes += len(delivery.payload)
        for entry in self._filters.values():
            if entry.ident in idents if idents else matches(entry.pattern, delivery.topic):
                for subscription in entry.listeners:
                    subscription.offer(delivery, qos)

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        chance = random.SystemRandom()
        pause_s = self._pauses.first_s
        opened_s = loop.time()
        while self._connection is not None:
            reason = await asyncio.shield(self._connection.ended)
            taken_over = self._connection.taken_over
            self._connection = None
            logger.warning("lost the connection to %s: %s", self._where, reason)
            pause_s = self._pauses.first_s if loop.time() - opened_s > _STABLE_S else self._longer(pause_s)
            if taken_over:
                pause_s = min(max(pause_s, _STABLE_S), self._pauses.longest_s)
            pause_s = await self._open_again(pause_s, chance)
            opened_s = loop.time()

    async def _open_again(self, pause_s: float, chance: random.Random) -> float:
        while True:
            await asyncio.sleep(pause_s * chance.uniform(0.5, 1.0))
            try:
                await self._open(_REDIAL_TIMEOUT_S)
            except LinkError as e:
                logger.info("cannot connect again yet: %s", e)
                pause_s = self._longer(pause_s)
            else:
                return pause_s

    def _longer(self, pause_s: float) -> float:
        return min(pause_s * 2, self._pauses.longest_s)

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _send(self, outgoing: _Outgoing) -> None:
        connection = self._connection
        if connection is None or outgoing.done.done():
            return
        if connection.send(outgoing.topic, outgoing.payload, outgoing.retain, outgoing.done):
            self.sent_bytes += len(outgoing.payload)

    async def _publish_once(self, topic: str, payload: bytes, retain: bool) -> None:
        connection = self._connection
        if connection is None or not await connection.room(len(payload)):
            logger.debug("dropped %d bytes on %s: no connection, or a stuck one", len(payload), topic)
        elif connection.send(topic, payload, retain, None):
            self.sent_bytes += len(payload)

    async def _granted(self, entry: Filter) -> None:
        connection, generation = self._connection, self.generation
        try:
            if connection is not None:
                await connection.subscribe(entry)
                return
        except LinkError:
            if connection is None or not connection.ended.done():
                raise
        await self.wait_generation(generation)  # a new connection subscribes to everything

    async def _unsubscribe(self, subscription: Subscription) -> None:
        entry = self._filters.get(subscription.pattern)
        if entry is None or subscription not in entry.listeners:
            return
        entry.listeners.remove(subscription)
        if not entry.listeners:
            del self._filters[entry.pattern]
            if self._connection is not None:
                self._connection.unsubscribe(entry.pattern)

    def _refuse_overlap(self, pattern: str) -> None:
        if self._tells_filters:
            return
        for other in self._filters:
            if overlap(pattern, other):
                raise UsageError(
                    f"the patterns {pattern} and {other} overlap, and this broker cannot tell them apart",
                    hint="use a broker that speaks MQTT 5",
                )

    def _require_open(self) -> None:
        if self._closed or (self._keeper is None and self._connection is None):
            raise LinkError("the connection was closed" if self._closed else "not connected yet")

    def _late(self, what: str) -> LinkError:
        return LinkError(f"{self._where} did not acknowledge {what} in {self._ack_timeout_s:g} s")


def overlap(one: str, two: str) -> bool:
    """Whether some topic matches both patterns; ``a`` and ``a/#`` meet in the topic ``a``."""
    for left, right in zip_longest(one.split("/"), two.split("/")):
        if "#" in (left, right):
            return True
        if left is None or right is None or (left != right and "+" not in (left, right)):
            return False
    return True
