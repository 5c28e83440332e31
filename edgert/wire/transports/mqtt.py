"""MQTT through paho, the only file that knows it.

Each connection is a fresh paho client with a daemon thread of its own; everything the thread learns is handed to the
event loop with ``call_soon_threadsafe``, and all state of :class:`MqttTransport` lives in that loop. MQTT 5 where the
broker speaks it (subscription identifiers, reasons for refusals), else 3.1.1; always a clean session.
"""

import asyncio
import logging
import random
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from paho.mqtt.client import Client, DisconnectFlags, MQTTMessage, topic_matches_sub
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgert.errors import LinkError, RefusedError, UsageError
from edgert.wire.transports.base import Broker, Delivery, Subscription, Will

__all__ = ["MqttTransport", "plugin"]

logger = logging.getLogger(__name__)

_KEEPALIVE_S: Final = 20
_INFLIGHT: Final = 20
_UNSENT_LIMIT_BYTES: Final = 4 << 20
_ROOM_TIMEOUT_S: Final = 10.0
_STABLE_S: Final = 10.0
_TAKEN_OVER: Final = 142
_WRONG_VERSION: Final = 132
_TICK_S: Final = 0.5


class _WrongVersionError(Exception):
    """The broker does not speak this version of MQTT."""


@dataclass(slots=True)
class _Outgoing:
    topic: str
    payload: bytes
    retain: bool
    done: asyncio.Future[None]


@dataclass(slots=True)
class _Filter:
    pattern: str
    ident: int
    qos: int
    listeners: list[Subscription] = field(default_factory=list)


class MqttTransport:
    """The transport of a fleet: one connection to one broker, made again whenever it is lost.

    Args:
        broker: where, and who we are.
        ack_timeout_s: how long a QoS 1 message or a subscription waits for its acknowledgement.
        first_pause_s, longest_pause_s: between attempts to connect again; they double, with jitter, and start over
            only after a connection that lasted: two clients with one name do not throw each other off in a tight loop.

    Raises:
        RefusedError: no authority to check the broker against, and not told to go without.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        ack_timeout_s: float = 30.0,
        first_pause_s: float = 0.2,
        longest_pause_s: float = 30.0,
    ) -> None:
        if broker.ca is None and not broker.insecure:
            raise RefusedError(
                f"no authority is given to check the broker {broker.host}:{broker.port} against",
                hint="give ca.pem of the fleet, or allow an insecure connection to a demo broker",
            )
        self.generation = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self._broker = broker
        self._ack_timeout_s = ack_timeout_s
        self._first_pause_s, self._longest_pause_s = first_pause_s, longest_pause_s
        self._versions = [MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311]
        self._will: Will | None = None
        self._connection: _Connection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False
        self._changed = asyncio.Event()
        self._filters: dict[str, _Filter] = {}
        self._last_ident = 0
        self._outbox: dict[int, _Outgoing] = {}
        self._last_outgoing = 0

    async def connect(self, will: Will | None = None, timeout_s: float = 10.0) -> None:
        if self._keeper is not None or self._closed:
            raise UsageError("this transport was connected already")
        self._will = will
        await self._open(timeout_s)
        self._keeper = asyncio.create_task(self._keep(), name="mqtt reconnection")

    async def wait_generation(self, after: int) -> int:
        while self.generation <= after:
            self._require_open()
            await self._changed.wait()
        return self.generation

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1) -> None:
        self._require_open()
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
            entry = self._filters[pattern] = _Filter(pattern, self._last_ident, qos)
        entry.qos = max(entry.qos, qos)
        subscription = Subscription(pattern, self._unsubscribe)
        entry.listeners.append(subscription)
        try:
            async with asyncio.timeout(self._ack_timeout_s):
                await self._granted(entry)
        except TimeoutError as e:
            await subscription.aclose()
            raise self._late(f"the subscription to {pattern}") from e
        except LinkError:
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

    # Called by the connection, in the event loop

    def arrived(self, delivery: Delivery, qos: int, idents: list[int]) -> None:
        self.received_bytes += len(delivery.payload)
        for entry in self._filters.values():
            if entry.ident in idents if idents else topic_matches_sub(entry.pattern, delivery.topic):
                for subscription in entry.listeners:
                    subscription.offer(delivery, qos)

    # Connections

    async def _open(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._handshake(timeout_s)
                await self._subscribe_all(connection)
        except TimeoutError as e:
            raise LinkError(f"{self._where()} did not answer in {timeout_s:g} s", hint=_HINT_REACH) from e
        self._connection = connection
        self.generation += 1
        self._announce()
        logger.info("connected to %s as %s", self._where(), self._broker.client_id)
        for outgoing in self._outbox.values():
            self._send(outgoing)

    async def _handshake(self, timeout_s: float) -> "_Connection":
        for version in self._versions:
            connection = _Connection(self._broker, version, self._will, self, timeout_s)
            try:
                await connection.open()
            except _WrongVersionError:
                logger.info("%s does not speak %s", self._where(), version.name)
            except BaseException:
                connection.abandon()
                raise
            else:
                self._versions = [version]
                return connection
        raise LinkError(f"{self._where()} speaks neither MQTT 5 nor MQTT 3.1.1", hint="is it an MQTT broker?")

    async def _subscribe_all(self, connection: "_Connection") -> None:
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

    async def _subscribe_again(self, connection: "_Connection", entry: _Filter) -> None:
        try:
            await connection.subscribe(entry)
        except LinkError as e:
            if connection.ended.done():
                raise
            logger.warning("lost the subscription to %s: %s", entry.pattern, e)

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        chance = random.SystemRandom()
        pause_s = self._first_pause_s
        opened_s = loop.time()
        while self._connection is not None:
            reason = await asyncio.shield(self._connection.ended)
            taken_over = self._connection.taken_over
            self._connection = None
            logger.warning("lost the connection to %s: %s", self._where(), reason)
            pause_s = self._first_pause_s if loop.time() - opened_s > _STABLE_S else self._longer(pause_s)
            if taken_over:
                pause_s = min(max(pause_s, _STABLE_S), self._longest_pause_s)
            pause_s = await self._open_again(pause_s, chance)
            opened_s = loop.time()

    async def _open_again(self, pause_s: float, chance: random.Random) -> float:
        while True:
            await asyncio.sleep(pause_s * chance.uniform(0.5, 1.0))
            try:
                await self._open(_STABLE_S)
            except LinkError as e:
                logger.info("cannot connect again yet: %s", e)
                pause_s = self._longer(pause_s)
            else:
                return pause_s

    def _longer(self, pause_s: float) -> float:
        return min(pause_s * 2, self._longest_pause_s)

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # Messages

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

    async def _granted(self, entry: _Filter) -> None:
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
        if self._versions[0] is MQTTProtocolVersion.MQTTv5:
            return
        for other in self._filters:
            if _overlap(pattern.split("/"), other.split("/")):
                raise UsageError(
                    f"the patterns {pattern} and {other} overlap, and this broker cannot tell them apart",
                    hint="use a broker that speaks MQTT 5",
                )

    def _require_open(self) -> None:
        if self._closed or (self._keeper is None and self._connection is None):
            raise LinkError("the connection was closed" if self._closed else "not connected yet")

    def _late(self, what: str) -> LinkError:
        return LinkError(f"{self._where()} did not acknowledge {what} in {self._ack_timeout_s:g} s")

    def _where(self) -> str:
        return f"the broker {self._broker.host}:{self._broker.port}"


class _Connection:
    """One connection: a paho client, its thread, and what waits for answers; methods are called in the event loop."""

    def __init__(
        self, broker: Broker, version: MQTTProtocolVersion, will: Will | None, owner: MqttTransport, timeout_s: float
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._broker = broker
        self._owner = owner
        self._v5 = version is MQTTProtocolVersion.MQTTv5
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self.taken_over = False
        self._limit_bytes = 0
        self._grants: dict[int, asyncio.Future[None]] = {}
        self._acks: dict[int, asyncio.Future[None]] = {}
        self._unsent: dict[int, int] = {}
        self._room = asyncio.Event()
        self._stopped = False
        self._last_error = ""
        self._client = self._make_client(version, will, timeout_s)
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    async def open(self) -> None:
        """Connect and wait for the broker's answer.

        Raises:
            LinkError: cannot be reached, or refused.
            _WrongVersionError: try another version.
        """
        self._thread.start()
        await self._opened

    async def subscribe(self, entry: _Filter) -> None:
        properties = None
        if self._v5:
            properties = Properties(PacketTypes.SUBSCRIBE)  # type: ignore[no-untyped-call]
            properties.SubscriptionIdentifier = entry.ident
            code, mid = self._client.subscribe(
                [(entry.pattern, SubscribeOptions(qos=entry.qos))], properties=properties
            )
        else:
            code, mid = self._client.subscribe(entry.pattern, entry.qos)
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS or mid is None:
            raise LinkError(f"cannot subscribe to {entry.pattern}: no connection")
        answer = self._grants[mid] = self._loop.create_future()
        if self.ended.done():
            self._settle(self._grants, mid, self.ended.result())
        await answer

    def unsubscribe(self, pattern: str) -> None:
        self._client.unsubscribe(pattern)

    def send(self, topic: str, payload: bytes, retain: bool, done: asyncio.Future[None] | None) -> bool:
        """Queue a message; `done` None means QoS 0. Returns whether it was queued."""
        if self._limit_bytes and len(payload) + len(topic) + 64 > self._limit_bytes:
            if done is not None:
                done.set_exception(LinkError(f"{len(payload)} bytes on {topic} are more than the broker takes"))
            return False
        try:
            info = self._client.publish(topic, payload, 0 if done is None else 1, retain)
        except ValueError as e:
            raise UsageError(f"cannot publish on {topic[:120]!r}: {e}") from e
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return False
        if done is not None:
            self._acks[info.mid] = done
        else:
            self._unsent[info.mid] = len(payload)
        return True

    async def room(self, size_bytes: int) -> bool:
        """Wait until `size_bytes` more may be queued; False when that takes too long or the connection ends."""
        try:
            async with asyncio.timeout(_ROOM_TIMEOUT_S):
                while self._unsent and sum(self._unsent.values()) + size_bytes > _UNSENT_LIMIT_BYTES:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            return False
        return not self.ended.done()

    async def close(self) -> None:
        """Disconnect in order; bounded."""
        self._client.disconnect()
        try:
            async with asyncio.timeout(2.0):
                await asyncio.shield(self.ended)
        except TimeoutError:
            self.abandon()

    def abandon(self) -> None:
        """Let the thread end by itself, without an orderly good-bye."""
        self._stopped = True

    # In paho's thread

    def _make_client(self, version: MQTTProtocolVersion, will: Will | None, timeout_s: float) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._broker.client_id,
            clean_session=None if self._v5 else True,
            protocol=version,
            reconnect_on_failure=False,
        )
        client.connect_timeout = timeout_s
        client.max_inflight_messages_set(_INFLIGHT)
        if self._broker.ca is not None:
            client.tls_set_context(_tls(self._broker))
        if will is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=True)
        client.on_socket_open = _no_delay
        # With this callback paho never writes from the caller's thread: it only queues, our thread writes.
        client.on_socket_register_write = _nothing
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_log = self._on_log
        return client

    def _run(self) -> None:
        failure: OSError | ValueError | None = None
        try:
            self._client.connect(self._broker.host, self._broker.port, _KEEPALIVE_S)
            while not self._stopped and self._client.loop(_TICK_S) == MQTTErrorCode.MQTT_ERR_SUCCESS:
                pass
        except (OSError, ValueError) as e:
            failure = e
        finally:
            sock = self._client.socket()
            if sock is not None:
                sock.close()
        self._post(self._end, failure)

    def _on_connect(self, _client: Client, _data: Any, _flags: Any, code: ReasonCode, properties: Any) -> None:
        self._post(self._answered, code, getattr(properties, "MaximumPacketSize", 0))

    def _on_disconnect(
        self, _client: Client, _data: Any, flags: DisconnectFlags, code: ReasonCode, _props: Any
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self.taken_over = code.value == _TAKEN_OVER
            self._last_error = str(code)

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        idents = list(getattr(message.properties, "SubscriptionIdentifier", [])) if self._v5 else []
        self._post(self._owner.arrived, Delivery(topic, bytes(message.payload), message.retain), message.qos, idents)

    def _on_publish(self, _client: Client, _data: Any, mid: int, code: ReasonCode, _props: Any) -> None:
        self._post(self._published, mid, code)

    def _on_subscribe(self, _client: Client, _data: Any, mid: int, codes: list[ReasonCode], _props: Any) -> None:
        self._post(self._granted, mid, codes[0])

    def _on_log(self, _client: Client, _data: Any, level: int, text: str) -> None:
        if level == LogLevel.MQTT_LOG_ERR and "not connected" not in text:
            self._last_error = text.removeprefix("failed to receive on socket: ")

    def _post(self, function: Callable[..., None], *arguments: Any) -> None:
        if not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(function, *arguments)
            except RuntimeError:  # the loop was closed this very moment
                self._stopped = True

    # In the event loop again

    def _answered(self, code: ReasonCode, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        if self._opened.done():
            return
        if code.value == _WRONG_VERSION:
            self._opened.set_exception(_WrongVersionError())
        elif code.is_failure:
            message = f"the broker {self._broker.host}:{self._broker.port} refuses {self._broker.client_id}: {code}"
            self._opened.set_exception(LinkError(message, hint=_HINT_RIGHTS))
        else:
            self._opened.set_result(None)

    def _published(self, mid: int, code: ReasonCode) -> None:
        if self._unsent.pop(mid, None) is not None:
            self._room.set()
        else:
            self._settle(self._acks, mid, str(code) if code.is_failure else "")

    def _granted(self, mid: int, code: ReasonCode) -> None:
        self._settle(self._grants, mid, str(code) if code.is_failure else "")

    def _settle(self, waiting: dict[int, asyncio.Future[None]], mid: int, problem: str) -> None:
        answer = waiting.pop(mid, None)
        if answer is None or answer.done():
            return
        if problem:
            where = f"{self._broker.host}:{self._broker.port}"
            answer.set_exception(LinkError(f"the broker {where} did not take it: {problem}", hint=_HINT_RIGHTS))
        else:
            answer.set_result(None)

    def _end(self, failure: OSError | ValueError | None) -> None:
        reason = self._last_error or "the broker closed it"
        self.ended.set_result(reason)
        if not self._opened.done():
            self._opened.set_exception(self._why_not(failure, reason))
            self._opened.exception()  # whoever waited may be gone
        self._unsent.clear()
        self._room.set()
        for mid in list(self._grants):  # messages wait for the next connection, subscriptions are made again there
            self._settle(self._grants, mid, reason)

    def _why_not(self, failure: OSError | ValueError | None, reason: str) -> Exception:
        where = f"{self._broker.host}:{self._broker.port}"
        if failure is not None:
            return _explained(failure, where)
        if "SSL" in reason:
            return LinkError(f"the broker {where} does not accept our certificate: {reason}", hint=_HINT_CERTIFICATE)
        if self._v5:
            return _WrongVersionError()
        return LinkError(f"the broker {where} closed the connection at once: {reason}", hint=_HINT_RIGHTS)


_HINT_REACH: Final = "is the broker running, and are host and port right?"
_HINT_RIGHTS: Final = "is this name enrolled, and may it do this?"
_HINT_CERTIFICATE: Final = "was it made by this fleet, has it expired or was it revoked?"


def _explained(failure: OSError | ValueError, where: str) -> LinkError:
    if isinstance(failure, ConnectionRefusedError):
        return LinkError(f"no broker answers at {where}", hint=_HINT_REACH)
    if isinstance(failure, socket.gaierror):
        return LinkError(f"the host of the broker {where} is not known: {failure.strerror}", hint="check its name")
    if isinstance(failure, ssl.SSLCertVerificationError):
        return LinkError(
            f"the certificate of the broker {where} is not accepted: {failure.verify_message}",
            hint="is ca.pem of the same fleet, and was the broker's certificate made for that host?",
        )
    if isinstance(failure, ssl.SSLError):
        return LinkError(f"TLS with the broker {where} failed: {failure.reason or failure}", hint=_HINT_CERTIFICATE)
    if isinstance(failure, TimeoutError):
        return LinkError(f"the broker {where} did not answer in time", hint=_HINT_REACH)
    return LinkError(f"cannot connect to the broker {where}: {failure}", hint=_HINT_REACH)


def _tls(broker: Broker) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=broker.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if broker.certificate is not None:
            context.load_cert_chain(broker.certificate, broker.key)
    except OSError as e:
        files = ", ".join(str(path) for path in (broker.ca, broker.certificate, broker.key) if path is not None)
        raise LinkError(f"cannot use the certificates {files}: {e}", hint="are they there, readable and PEM?") from e
    return context


def _no_delay(_client: Client, _data: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _nothing(_client: Client, _data: Any, _sock: Any) -> None:
    pass


def _overlap(one: list[str], two: list[str]) -> bool:
    """Whether some topic matches both patterns, given as their levels."""
    if one[:1] == ["#"] or two[:1] == ["#"]:
        return True
    if not one or not two:
        return one == two or one == ["#"] or two == ["#"]
    return (one[0] == two[0] or "+" in (one[0], two[0])) and _overlap(one[1:], two[1:])


plugin = MqttTransport
