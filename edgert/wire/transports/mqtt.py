"""MQTT through paho, the only file that knows it.

Each connection is a fresh paho client with a daemon thread of its own; what the thread learns is handed to the event
loop with ``call_soon_threadsafe``, and all state lives there. MQTT 5 where the broker speaks it over TLS (it says
which subscriptions a message matched, and why it refuses), else 3.1.1; always a clean session.
"""

import asyncio
import select
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from paho.mqtt.client import Client, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgert.errors import LinkError, RefusedError
from edgert.wire.reconnect import DEFAULT_PAUSES, Arrived, Dial, Filter, Pauses, Reconnecting, WrongVersionError
from edgert.wire.transports.base import Broker, Delivery, Will

__all__ = ["MqttTransport", "plugin"]

_KEEPALIVE_S: Final = 20
_INFLIGHT: Final = 20
_UNSENT_LIMIT_BYTES: Final = 4 << 20
_ROOM_TIMEOUT_S: Final = 10.0
_GOODBYE_S: Final = 2.0
_TAKEN_OVER: Final = 142
_WRONG_VERSION: Final = 132
_TICK_MS: Final = 500
_HINT_REACH: Final = "is the broker running, and are host and port right?"
_HINT_RIGHTS: Final = "is this name enrolled, and may it do this?"
_HINT_CERTIFICATE: Final = "was it made by this fleet, has it expired or was it revoked?"


class MqttTransport(Reconnecting):
    """The transport of a fleet: one connection to one broker, made again whenever it is lost.

    Args:
        broker: where, and who we are.
        ack_timeout_s: how long a QoS 1 message or a subscription waits for its acknowledgement.
        pauses: between attempts to connect again.

    Raises:
        RefusedError: no authority to check the broker against, and not told to go without.
    """

    def __init__(self, broker: Broker, *, ack_timeout_s: float = 30.0, pauses: Pauses = DEFAULT_PAUSES) -> None:
        if broker.ca is None and not broker.insecure:
            raise RefusedError(
                f"no authority is given to check the broker {broker.host}:{broker.port} against",
                hint="give ca.pem of the fleet",
            )
        # Without TLS, which only tests go without, 3.1.1 alone: a small broker may stay silent to MQTT 5.
        newest = [] if broker.ca is None else [_dial(broker, MQTTProtocolVersion.MQTTv5)]
        dials = [*newest, _dial(broker, MQTTProtocolVersion.MQTTv311)]
        super().__init__(_where(broker), dials, ack_timeout_s=ack_timeout_s, pauses=pauses)


def _dial(broker: Broker, version: MQTTProtocolVersion) -> Dial:
    def dial(will: Will | None, arrived: Arrived, timeout_s: float) -> _Connection:
        return _Connection(broker, version, will, arrived, timeout_s)

    return dial


class _Connection:
    """One connection: a paho client, its thread, and what waits for answers; methods are called in the event loop."""

    def __init__(
        self, broker: Broker, version: MQTTProtocolVersion, will: Will | None, arrived: Arrived, timeout_s: float
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._broker = broker
        self._arrived = arrived
        self._v5 = self.tells_filters = version is MQTTProtocolVersion.MQTTv5
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
        self._ear, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    async def open(self) -> None:
        """Connect and wait for the broker's answer.

        Raises:
            LinkError: cannot be reached, or refused.
            WrongVersionError: try another version.
        """
        self._thread.start()
        await self._opened

    async def subscribe(self, entry: Filter) -> None:
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
        self._wake()
        answer = self._grants[mid] = self._loop.create_future()
        if self.ended.done():
            self._settle(self._grants, mid, self.ended.result())
        await answer

    def unsubscribe(self, pattern: str) -> None:
        self._client.unsubscribe(pattern)
        self._wake()

    def send(self, topic: str, payload: bytes, retain: bool, done: asyncio.Future[None] | None) -> bool:
        """Queue a message; `done` None means QoS 0. Returns whether it was queued."""
        if self._limit_bytes and len(payload) + len(topic) + 64 > self._limit_bytes:
            if done is not None:
                done.set_exception(LinkError(f"{len(payload)} bytes on {topic} are more than the broker takes"))
            return False
        info = self._client.publish(topic, payload, 0 if done is None else 1, retain)
        self._wake()
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
        self._wake()
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await asyncio.shield(self.ended)
        except TimeoutError:
            self.abandon()

    def abandon(self) -> None:
        """Let the thread end by itself, without an orderly good-bye."""
        self._stopped = True
        self._wake()

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
            self._pass_packets()
        except (OSError, ValueError) as e:
            failure = e
        finally:
            sock = self._client.socket()
            if sock is not None:
                sock.close()
            self._bell.close()
            self._ear.close()
        self._post(self._end, failure)

    def _pass_packets(self) -> None:
        """Like paho's own loop, but with a poll: that one's select knows no file descriptors above 1023."""
        while not self._stopped and (sock := self._client.socket()) is not None:
            poll = select.poll()
            poll.register(self._ear, select.POLLIN)
            poll.register(sock, select.POLLIN | (select.POLLOUT if self._client.want_write() else 0))
            held = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
            events = dict(poll.poll(0 if held else _TICK_MS))
            if self._ear.fileno() in events:
                self._ear.recv(4096)
            happened = events.get(sock.fileno(), 0)
            code = MQTTErrorCode.MQTT_ERR_SUCCESS
            if held or happened & ~select.POLLOUT:
                code = self._client.loop_read()
            if code == MQTTErrorCode.MQTT_ERR_SUCCESS and self._client.want_write():
                code = self._client.loop_write()
            if code != MQTTErrorCode.MQTT_ERR_SUCCESS or self._client.loop_misc() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return

    def _wake(self) -> None:
        with suppress(OSError):  # full: it is awake; closed: it has ended
            self._bell.send(b"\0")

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
        self._post(self._arrived, Delivery(topic, bytes(message.payload), message.retain), message.qos, idents)

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
            self._opened.set_exception(WrongVersionError("MQTT 5" if self._v5 else "MQTT 3.1.1"))
        elif code.is_failure:
            message = f"{_where(self._broker)} refuses {self._broker.client_id}: {code}"
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
            answer.set_exception(LinkError(f"{_where(self._broker)} did not take it: {problem}", hint=_HINT_RIGHTS))
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
        where = _where(self._broker)
        if failure is not None:
            return _explained(failure, where)
        if "SSL" in reason:
            return LinkError(f"{where} does not accept our certificate: {reason}", hint=_HINT_CERTIFICATE)
        if self._v5:
            return WrongVersionError("MQTT 5")
        return LinkError(f"{where} closed the connection at once: {reason}", hint=_HINT_RIGHTS)


def _explained(failure: OSError | ValueError, where: str) -> LinkError:
    if isinstance(failure, ConnectionRefusedError):
        return LinkError(f"{where} does not answer: connection refused", hint=_HINT_REACH)
    if isinstance(failure, socket.gaierror):
        return LinkError(f"the host of {where} is not known: {failure.strerror}", hint="check its name")
    if isinstance(failure, ssl.SSLCertVerificationError):
        return LinkError(
            f"the certificate of {where} is not accepted: {failure.verify_message}",
            hint="is ca.pem of the same fleet, and was the broker's certificate made for that host?",
        )
    if isinstance(failure, ssl.SSLError):
        return LinkError(f"TLS with {where} failed: {failure.reason or failure}", hint=_HINT_CERTIFICATE)
    if isinstance(failure, TimeoutError):
        return LinkError(f"{where} did not answer in time", hint=_HINT_REACH)
    return LinkError(f"cannot connect to {where}: {failure}", hint=_HINT_REACH)


class _HandshakeSocket(ssl.SSLSocket):
    """A TLS socket that is closed when its handshake fails; paho forgets it then."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _tls(broker: Broker) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=broker.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.sslsocket_class = _HandshakeSocket
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


def _where(broker: Broker) -> str:
    return f"the broker {broker.host}:{broker.port}"


plugin = MqttTransport
