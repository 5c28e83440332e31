"""What carries the messages: any MQTT broker, or the loopback of one process."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol, Self

from edgert.errors import UsageError

__all__ = ["Broker", "Delivery", "Subscription", "Transport", "Will", "check_message", "matches"]

logger = logging.getLogger(__name__)

_HELD_LIMIT_BYTES: Final = 16 << 20
_HELD_LIMIT_MESSAGES: Final = 10_000
_TOPIC_LIMIT_BYTES: Final = 65_535
_PAYLOAD_LIMIT_BYTES: Final = (256 << 20) - 100_000


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the broker is and who we are to it.

    Args:
        host, port: of the broker.
        ca: certificate of the fleet's authority, PEM file.
        certificate, key: ours, PEM files; the certificate's common name is our identity.
        client_id: our common name.
        insecure: allow a connection without TLS; no fleet does, it is for trying a transport out.
    """

    host: str
    port: int
    client_id: str
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    insecure: bool = False


class Will(NamedTuple):
    """What the broker says for us when we are gone (retained, QoS 1)."""

    topic: str
    payload: bytes


class Delivery(NamedTuple):
    """A message as it arrived."""

    topic: str
    payload: bytes
    retained: bool


class Subscription:
    """Messages of one pattern as they arrive: ``async for``, one consumer; ``aclose`` when no more are wanted.

    A consumer that is too slow loses messages: above 16 MiB or 10,000 held messages new ones are dropped, QoS 0 with
    a DEBUG line (whoever asked asks again), others with a WARNING.

    Args:
        pattern: what was subscribed.
        closing: called once by `aclose`: takes the subscription off its transport.
    """

    def __init__(self, pattern: str, closing: "Callable[[Subscription], Awaitable[None]]") -> None:
        self.pattern = pattern
        self._closing = closing
        self._queue: asyncio.Queue[Delivery | None] = asyncio.Queue()
        self._held_bytes = 0
        self._known: set[str] = set()
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        delivery = await self._queue.get()
        if delivery is None:
            self._queue.put_nowait(None)
            raise StopAsyncIteration
        self._held_bytes -= len(delivery.payload)
        return delivery

    async def aclose(self) -> None:
        """End the subscription; the iterator ends after what it still holds."""
        if not self._ended:
            self.finish()
            await self._closing(self)

    def offer(self, delivery: Delivery, qos: int) -> None:
        """Called by the transport: one message arrived.

        What the broker kept of a topic is passed on once per connection: brokers repeat it to everyone when somebody
        else subscribes to the same pattern.
        """
        if self._ended or (delivery.retained and delivery.topic in self._known):
            return
        self._known.add(delivery.topic)
        size_bytes = len(delivery.payload)
        if self._held_bytes + size_bytes > _HELD_LIMIT_BYTES or self._queue.qsize() >= _HELD_LIMIT_MESSAGES:
            level = logging.WARNING if qos else logging.DEBUG
            logger.log(level, "dropped a message on %s: nobody takes them", delivery.topic)
            return
        self._held_bytes += size_bytes
        self._queue.put_nowait(delivery)

    def renew(self) -> None:
        """Called by the transport before it subscribes again: kept messages are passed on again."""
        self._known.clear()

    def finish(self) -> None:
        """Called by the transport: no more messages will arrive."""
        if not self._ended:
            self._ended = True
            self._queue.put_nowait(None)


class Transport(Protocol):
    """Publish and subscribe, with reconnection inside.

    After a lost connection the transport connects again by itself (growing pauses with jitter), subscribes again,
    and `generation` grows; iterators go on. Messages published in between are sent later (QoS 1) or dropped (QoS 0).
    Each subscription gets a message once, however many patterns match it. No session is kept by the broker: what is
    not retained is lost while we are away, so everything that matters is retained or asked for again.
    """

    generation: int
    """How often the connection was made; 0 before the first."""
    received_bytes: int
    """Payload bytes received so far."""
    sent_bytes: int
    """Payload bytes sent so far."""

    async def connect(self, will: Will | None = None, timeout_s: float = 10.0) -> None:
        """Connect and wait until the broker accepted us.

        Raises:
            LinkError: the broker cannot be reached or refuses us.
        """
        ...

    async def wait_generation(self, after: int) -> int:
        """Wait until `generation` is larger than `after`: a (new) connection with all subscriptions made again.

        Raises:
            LinkError: the transport was closed.
        """
        ...

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1) -> None:
        """Hand a message to the broker.

        QoS 1 returns after the broker's acknowledgement; while disconnected it waits for the next connection. A
        message whose time is over is withdrawn, though the broker may have it already. QoS 0 returns at once, except
        that it waits for room while too much is unsent; it is dropped while disconnected.

        Raises:
            LinkError: the transport is closed, the broker refused the message, or no acknowledgement came in time.
        """
        ...

    async def subscribe(self, pattern: str, *, qos: int = 1) -> Subscription:
        """Messages whose topic matches, from the moment the broker acknowledged the subscription.

        Returns only after the acknowledgement: what is published from now on will be delivered. Closing the iterator
        (``aclose``) ends the subscription.

        Raises:
            LinkError: the transport is closed, the broker refuses, or no acknowledgement came in time.
        """
        ...

    async def close(self) -> None:
        """Disconnect in order (no last will); iterators end."""
        ...


def matches(pattern: str, topic: str) -> bool:
    """Whether an MQTT pattern (``+`` one level, ``#`` the rest) covers a topic."""
    wanted, levels = pattern.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position >= len(levels) or level not in ("+", levels[position]):
            return False
    return len(wanted) == len(levels)


def check_message(topic: str, payload: bytes) -> None:
    """Refuse what no broker would take.

    Raises:
        UsageError: not a topic one can publish on, or too many bytes.
    """
    if not topic or len(topic.encode()) > _TOPIC_LIMIT_BYTES or set("+#\0") & set(topic):
        raise UsageError(f"cannot publish on {topic[:120]!r}")
    if len(payload) > _PAYLOAD_LIMIT_BYTES:
        raise UsageError(f"{len(payload)} bytes are too many for one message on {topic}")
