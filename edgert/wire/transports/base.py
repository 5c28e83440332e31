"""What carries the messages: any MQTT broker, or the loopback of one process."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

__all__ = ["Broker", "Delivery", "Transport", "Will"]


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the broker is and who we are to it.

    Args:
        host, port: of the broker.
        ca: certificate of the fleet's authority, PEM file.
        certificate, key: ours, PEM files; the certificate's common name is our identity.
        client_id: our common name.
        insecure: allow a connection without TLS (only for the embedded demo broker).
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


class Transport(Protocol):
    """Publish and subscribe, with reconnection inside.

    After a lost connection the transport connects again by itself (growing pauses with jitter), subscribes again,
    and `generation` grows; iterators go on. Messages published in between are sent later (QoS 1) or dropped (QoS 0).
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
        """Wait until `generation` is larger than `after`: a (new) connection with all subscriptions made again."""
        ...

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1) -> None:
        """Hand a message to the broker; with QoS 1 return after its acknowledgement (or queue while disconnected).

        Raises:
            LinkError: the transport is closed, or no acknowledgement came in time.
        """
        ...

    async def subscribe(self, pattern: str, *, qos: int = 1) -> AsyncIterator[Delivery]:
        """Messages whose topic matches, from the moment the broker acknowledged the subscription.

        Returns only after the acknowledgement: what is published from now on will be delivered. Closing the iterator
        (``aclose``) ends the subscription.
        """
        ...

    async def close(self) -> None:
        """Disconnect in order (no last will); iterators end."""
        ...
