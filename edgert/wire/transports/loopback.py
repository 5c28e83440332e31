"""A broker inside the process: the same contract as MQTT, without a network; for tests and single-process use."""

import asyncio
from collections.abc import Callable
from typing import ClassVar, Final

from edgert.errors import LinkError, UsageError
from edgert.wire.transports.base import Broker, Delivery, Subscription, Will, check_message, matches

__all__ = ["LoopbackBroker", "LoopbackTransport", "plugin"]

Acl = Callable[[str, str, str], bool]
"""``(client_id, "read" | "write", topic)`` -> allowed. A forbidden message vanishes, as Mosquitto does it."""

_ACK_TIMEOUT_S: Final = 30.0


class LoopbackBroker:
    """Retained messages, wildcards, wills, takeover of a client id.

    Args:
        acl: who may do what; None allows everything.
        lose: asked for every QoS 0 message and each of its receivers: ``(topic, payload)`` -> lost.
    """

    _named: ClassVar[dict[tuple[str, int], "LoopbackBroker"]] = {}

    def __init__(self, *, acl: Acl | None = None, lose: Callable[[str, bytes], bool] | None = None) -> None:
        self._acl = acl
        self._lose = lose
        self._kept: dict[str, bytes] = {}
        self._clients: dict[str, LoopbackTransport] = {}
        self._up = True

    @classmethod
    def at(cls, host: str, port: int) -> "LoopbackBroker":
        """The broker under that address in this process, made on first use."""
        return cls._named.setdefault((host, port), cls())

    @property
    def up(self) -> bool:
        """Whether it takes connections."""
        return self._up

    def stop(self) -> None:
        """Break all connections and take no new ones."""
        self._up = False
        for client in self._clients.values():
            client.lost()

    def start(self) -> None:
        """Take connections again; clients connect by themselves."""
        self._up = True
        for client in list(self._clients.values()):
            self.enter(client)

    def drop(self, client_id: str) -> None:
        """Break one connection: its will is published, and the client connects again."""
        client = self._clients.get(client_id)
        if client is not None and client.linked:
            client.lost()
            self._publish_will(client)
            asyncio.get_running_loop().call_soon(self._come_back, client)

    def enter(self, client: "LoopbackTransport") -> None:
        """A client connects; whoever had its name is thrown off and stays off."""
        other = self._clients.get(client.client_id)
        if other is not None and other is not client:
            other.lost()
            self._publish_will(other)
        self._clients[client.client_id] = client
        client.entered()
        for subscription in client.subscriptions:
            subscription.renew()
            self.show_kept(client, subscription)

    def leave(self, client: "LoopbackTransport") -> None:
        """A client says good-bye: its will is not published."""
        if self._clients.get(client.client_id) is client:
            del self._clients[client.client_id]

    def route(self, sender: str, topic: str, payload: bytes, *, retain: bool, qos: int) -> None:
        """Hand a message to everyone who may have it."""
        if not self._may(sender, "write", topic):
            return
        if retain:
            self._kept[topic] = payload
            if not payload:
                del self._kept[topic]
        for client in list(self._clients.values()):
            if client.linked and self._may(client.client_id, "read", topic):
                for subscription in client.subscriptions:
                    if matches(subscription.pattern, topic) and not (qos == 0 and self._loses(topic, payload)):
                        client.take(subscription, Delivery(topic, payload, False), qos)

    def show_kept(self, client: "LoopbackTransport", subscription: Subscription) -> None:
        """Hand the retained messages to a new subscription."""
        for topic, payload in list(self._kept.items()):
            if matches(subscription.pattern, topic) and self._may(client.client_id, "read", topic):
                client.take(subscription, Delivery(topic, payload, True), 1)

    def _come_back(self, client: "LoopbackTransport") -> None:
        if self._up and self._clients.get(client.client_id) is client and not client.linked:
            self.enter(client)

    def _publish_will(self, client: "LoopbackTransport") -> None:
        if client.will is not None:
            self.route(client.client_id, client.will.topic, client.will.payload, retain=True, qos=1)

    def _loses(self, topic: str, payload: bytes) -> bool:
        return self._lose is not None and self._lose(topic, payload)

    def _may(self, client_id: str, action: str, topic: str) -> bool:
        return self._acl is None or self._acl(client_id, action, topic)


class LoopbackTransport:
    """A client of a `LoopbackBroker`.

    Args:
        broker: who we are, and under which address the broker is found when `server` is not given.
        server: the broker itself.
        ack_timeout_s: how long a QoS 1 message waits while the broker is down.
    """

    def __init__(
        self, broker: Broker, server: LoopbackBroker | None = None, *, ack_timeout_s: float = _ACK_TIMEOUT_S
    ) -> None:
        self.client_id = broker.client_id
        self.generation = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self.will: Will | None = None
        self.linked = False
        self.subscriptions: list[Subscription] = []
        self._server = server or LoopbackBroker.at(broker.host, broker.port)
        self._ack_timeout_s = ack_timeout_s
        self._closed = False
        self._changed = asyncio.Event()

    async def connect(self, will: Will | None = None, timeout_s: float = 10.0) -> None:
        if self._closed or self.generation:
            raise UsageError("this transport was connected already")
        if not self._server.up:
            raise LinkError("the loopback broker is down", hint="start it")
        self.will = will
        self._server.enter(self)

    async def wait_generation(self, after: int) -> int:
        while self.generation <= after:
            self._require_open()
            await self._changed.wait()
        return self.generation

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1) -> None:
        self._require_open()
        check_message(topic, payload)
        if qos and not self.linked:
            await self._until_linked(f"a message on {topic}")
        if self.linked:
            self.sent_bytes += len(payload)
            self._server.route(self.client_id, topic, payload, retain=retain, qos=qos)
        await asyncio.sleep(0)

    async def subscribe(self, pattern: str, *, qos: int = 1) -> Subscription:
        self._require_open()
        subscription = Subscription(pattern, self._unsubscribe)
        if not self.linked:
            await self._until_linked(f"the subscription to {pattern}")
        self.subscriptions.append(subscription)
        self._server.show_kept(self, subscription)
        await asyncio.sleep(0)
        return subscription

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.linked = False
        self._server.leave(self)
        for subscription in self.subscriptions:
            subscription.finish()
        self._announce()

    # Called by the broker

    def entered(self) -> None:
        """The connection was made."""
        self.linked = True
        self.generation += 1
        self._announce()

    def lost(self) -> None:
        """The connection was broken."""
        self.linked = False

    def take(self, subscription: Subscription, delivery: Delivery, qos: int) -> None:
        """A message arrived for one of our subscriptions."""
        self.received_bytes += len(delivery.payload)
        subscription.offer(delivery, qos)

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _unsubscribe(self, subscription: Subscription) -> None:
        if subscription in self.subscriptions:
            self.subscriptions.remove(subscription)

    async def _until_linked(self, what: str) -> None:
        try:
            async with asyncio.timeout(self._ack_timeout_s):
                await self.wait_generation(self.generation)
        except TimeoutError as e:
            raise LinkError(f"the loopback broker did not acknowledge {what} in {self._ack_timeout_s:g} s") from e

    def _require_open(self) -> None:
        if self._closed or not self.generation:
            raise LinkError("the connection was closed" if self._closed else "not connected yet")


plugin = LoopbackTransport
