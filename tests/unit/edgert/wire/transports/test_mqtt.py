"""What a broker, or something that only looks like one, can do to us while we connect."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgert.errors import LinkError, RefusedError, UsageError
from edgert.identity import Authority
from edgert.wire.reconnect import Pauses
from edgert.wire.transports.base import Broker
from edgert.wire.transports.mqtt import MqttTransport
from tests.support.broker import Mosquitto, free_port
from tests.support.certificates import Certificates
from tests.support.loop import run
from tests.support.relay import Relay


async def _refusal(broker: Broker, timeout_s: float = 5.0) -> LinkError:
    transport = MqttTransport(broker)
    with pytest.raises(LinkError) as caught:
        await transport.connect(timeout_s=timeout_s)
    await transport.close()
    assert caught.value.hint
    return caught.value


def _plain(port: int) -> Broker:
    return Broker("127.0.0.1", port, "box", insecure=True)


def test_a_broker_that_cannot_be_checked_is_refused() -> None:
    with pytest.raises(RefusedError) as caught:
        MqttTransport(Broker("127.0.0.1", 1, "box"))
    assert "ca.pem" in caught.value.hint


def test_nobody_listening_and_an_unknown_host_are_told_apart() -> None:
    assert "connection refused" in run(_refusal(_plain(free_port()))).message
    assert "not known" in run(_refusal(replace(_plain(1), host="no-such-host.invalid"))).message


def test_missing_and_broken_certificate_files_are_named(tmp_path: Path) -> None:
    broker = Certificates.make(tmp_path).broker("box", free_port())
    assert "none.pem" in run(_refusal(replace(broker, ca=tmp_path / "none.pem"))).message
    (tmp_path / "box.pem").write_text("broken")
    assert "box.pem" in run(_refusal(broker)).message


def test_certificates_are_checked_on_both_sides(tmp_path: Path) -> None:
    ours = Certificates.make(tmp_path / "ours")
    theirs = Certificates.make(tmp_path / "theirs")
    with Mosquitto(tmp_path, ours.config()) as mosquitto:
        good = ours.broker("box", mosquitto.port)
        foreign = theirs.broker("box", mosquitto.port)
        error = run(_refusal(replace(good, ca=foreign.ca)))
        assert "the certificate of the broker" in error.message
        error = run(_refusal(replace(good, certificate=foreign.certificate, key=foreign.key)))
        assert "closed" in error.message or "certificate" in error.message
        error = run(_refusal(replace(good, certificate=None, key=None)))
        assert "closed" in error.message or "certificate" in error.message


def test_a_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    certificates = Certificates.make(tmp_path, hosts=("broker.example",))
    with Mosquitto(tmp_path, certificates.config()) as mosquitto:
        error = run(_refusal(certificates.broker("box", mosquitto.port)))
        assert "the certificate of the broker" in error.message
        assert "host" in error.hint


def test_an_expired_certificate_of_the_broker_is_refused(tmp_path: Path) -> None:
    certificates = Certificates.make(tmp_path)
    old = datetime(2020, 1, 1, tzinfo=UTC)
    key, certificate = Authority(certificates.authority.certificate, certificates.authority.key).issue_server(
        ["127.0.0.1"], old, 1
    )
    (tmp_path / "broker.key").write_bytes(key)
    (tmp_path / "broker.pem").write_bytes(certificate)
    with Mosquitto(tmp_path, certificates.config()) as mosquitto:
        assert "expired" in run(_refusal(certificates.broker("box", mosquitto.port))).message


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def _listening(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that handles each connection; the connections end with it."""
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await handler(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls, limit=1024)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def _deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(10)
    writer.write(b"\x20\x02\x00\x00")
    await asyncio.Event().wait()


async def _old_broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    packet = await reader.read(1024)
    if packet[8] == 4:
        writer.write(b"\x20\x02\x00\x00")
        while packet := await reader.read(1024):
            if packet[0] == 0x82:
                writer.write(bytes((0x90, 3, *packet[2:4], 1)))


def test_a_silent_server_is_given_up_in_time() -> None:
    async def main() -> None:
        async with _listening(_silent) as port:
            loop = asyncio.get_running_loop()
            start = loop.time()
            error = await _refusal(_plain(port), timeout_s=0.3)
            assert "0.3 s" in error.message
            assert loop.time() - start < 3

    run(main())


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x02\x00\x05"])
def test_a_server_that_is_no_broker_of_ours_is_a_clear_error(answer: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)

    async def main() -> None:
        async with _listening(handler) as port:
            assert "the broker 127.0.0.1" in (await _refusal(_plain(port))).message

    run(main())


def test_a_broker_without_mqtt_5_is_spoken_to_in_3_1_1(tmp_path: Path) -> None:
    certificates = Certificates.make(tmp_path)

    async def main() -> None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(tmp_path / "broker.pem", tmp_path / "broker.key")
        async with _listening(_old_broker, tls) as port:
            transport = MqttTransport(certificates.broker("box", port))
            await transport.connect()
            await transport.subscribe("a/+")
            with pytest.raises(UsageError, match="overlap"):
                await transport.subscribe("a/#")
            await transport.close()

    run(main())


def test_an_acknowledgement_that_does_not_come_is_an_error_in_time(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as mosquitto:

        async def main() -> None:
            transport = MqttTransport(_plain(mosquitto.port), ack_timeout_s=0.2)
            await transport.connect()
            mosquitto.stop()
            with pytest.raises(LinkError, match=r"a message on a .* 0\.2 s|did not acknowledge a message on a"):
                await transport.publish("a", b"x")
            with pytest.raises(LinkError, match="did not acknowledge the subscription to a"):
                await transport.subscribe("a")
            await transport.publish("a", b"x", qos=0)
            await transport.close()

        run(main())


def test_a_stuck_way_does_not_fill_the_memory() -> None:
    async def main() -> None:
        async with _listening(_deaf) as port:
            transport = MqttTransport(_plain(port))
            await transport.connect()
            sending = [asyncio.create_task(transport.publish("a", bytes(1 << 20), qos=0)) for _ in range(40)]
            _, waiting = await asyncio.wait(sending, timeout=0.5)
            assert waiting, "there must come a moment when nobody may queue more"
            assert transport.sent_bytes <= 16 << 20
            for task in waiting:
                task.cancel()
            await asyncio.gather(*sending, return_exceptions=True)
            await transport.close()

    run(main())


def test_a_lost_way_is_tried_again_with_growing_pauses(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as mosquitto, Relay(mosquitto.port) as relay:

        async def main() -> None:
            transport = MqttTransport(_plain(relay.port), pauses=Pauses(0.01, 0.05))
            await transport.connect()
            for generation in range(1, 4):
                relay.cut()
                assert await transport.wait_generation(generation) == generation + 1
                await transport.publish("a", b"x")
            await transport.close()

        run(main())
