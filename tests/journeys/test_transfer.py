"""Blobs through a real Mosquitto: lost frames, a broker that restarts, a receiver that is killed."""

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edgert.store import Store
from edgert.values import digest
from edgert.wire import topics
from edgert.wire.chunks import StoreSource, answer
from edgert.wire.messages.blob import WINDOW_BYTES, Get
from edgert.wire.transports.base import Broker, Subscription, Transport
from edgert.wire.transports.mqtt import MqttTransport
from tests.support.broker import Mosquitto
from tests.support.certificates import Certificates
from tests.support.loop import run
from tests.support.receiver import fetch
from tests.support.relay import Lossy, Relay

pytestmark = pytest.mark.journey

_BLOB = random.Random(1).randbytes(8 << 20)
_NAME = digest(_BLOB)
_DEVICE = "box1"


class _Server:
    """Answers one device from a store; `pause_at` frames it stops answering and says so, until told to go on."""

    def __init__(self, transport: Transport, folder: Path, pause_at: int | None = None) -> None:
        self.frames = 0
        self.sent_bytes = 0
        self.paused = asyncio.Event()
        self.go_on = asyncio.Event()
        self._transport = transport
        self._pause_at = pause_at
        store = Store(folder)
        assert store.add(_BLOB) == _NAME
        self._source = StoreSource(store)

    async def run(self, requests: Subscription) -> None:
        async for delivery in requests:
            if self.frames == self._pause_at:
                self.paused.set()
                await self.go_on.wait()
            device, _ = topics.device_of(delivery.topic)
            frame = answer(Get.decode(delivery.payload), self._source)
            self.frames += 1
            self.sent_bytes += len(frame.data)
            await self._transport.publish(topics.device(device, "data"), frame.encode(), qos=0)


@asynccontextmanager
async def _serving(transport: Transport, folder: Path, pause_at: int | None = None) -> AsyncIterator[_Server]:
    await transport.connect()
    server = _Server(transport, folder, pause_at)
    task = asyncio.create_task(server.run(await transport.subscribe(topics.every_device("get"))))
    try:
        yield server
    finally:
        await transport.close()
        await task


def _plain(port: int, name: str) -> MqttTransport:
    return MqttTransport(Broker("127.0.0.1", port, name, insecure=True))


async def _received(transport: Transport, folder: Path) -> None:
    await transport.connect()
    await fetch(transport, _DEVICE, Store(folder), _NAME, len(_BLOB))
    await transport.close()
    assert Store(folder).read(_NAME) == _BLOB


def test_a_blob_travels_over_tls(tmp_path: Path) -> None:
    certificates = Certificates.make(tmp_path)

    async def main(port: int) -> None:
        async with _serving(MqttTransport(certificates.broker("server", port)), tmp_path / "server") as server:
            await _received(MqttTransport(certificates.broker(_DEVICE, port)), tmp_path / "device")
            assert server.sent_bytes == len(_BLOB)

    with Mosquitto(tmp_path, certificates.config()) as broker:
        run(main(broker.port))


def test_a_blob_arrives_although_frames_are_lost(tmp_path: Path) -> None:
    async def main(port: int) -> None:
        lossy = Lossy(_plain(port, "server"), 0.05, seed=3)
        async with _serving(lossy, tmp_path / "server"):
            await _received(_plain(port, _DEVICE), tmp_path / "device")
            assert lossy.lost > 0

    with Mosquitto(tmp_path) as broker:
        run(main(broker.port))


async def _interrupted(broker: Mosquitto, port: int, folder: Path, interrupt: Callable[[], Awaitable[None]]) -> _Server:
    async with _serving(_plain(broker.port, "server"), folder / "server", pause_at=10) as server:
        receiving = asyncio.create_task(_received(_plain(port, _DEVICE), folder / "device"))
        await server.paused.wait()
        await interrupt()
        server.go_on.set()
        await receiving
        return server


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_a_blob_arrives_although_the_broker_restarts_in_the_middle(tmp_path: Path, way: str) -> None:
    with Mosquitto(tmp_path) as broker:

        async def restart() -> None:
            await asyncio.to_thread(broker.stop if way == "stop" else broker.kill)
            await asyncio.to_thread(broker.start)

        server = run(_interrupted(broker, broker.port, tmp_path, restart))
        assert server.sent_bytes <= len(_BLOB) + 2 * WINDOW_BYTES


def test_a_blob_arrives_although_the_way_to_the_broker_breaks(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Relay(broker.port) as relay:

        async def cut() -> None:
            relay.cut()

        run(_interrupted(broker, relay.port, tmp_path, cut))
        assert relay.down_bytes >= len(_BLOB)


@pytest.mark.parametrize("pause_at", [1, 13, 30])
def test_a_killed_receiver_goes_on_and_fetches_at_most_one_window_again(tmp_path: Path, pause_at: int) -> None:
    async def receiver(port: int) -> asyncio.subprocess.Process:
        words = (port, _DEVICE, tmp_path / "device", _NAME, len(_BLOB))
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.receiver", *map(str, words), cwd=Path(__file__).parents[2]
        )

    async def main(port: int) -> None:
        async with _serving(_plain(port, "server"), tmp_path / "server", pause_at) as server:
            first = await receiver(port)
            await server.paused.wait()
            first.kill()
            await first.wait()
            server.go_on.set()
            second = await receiver(port)
            assert await second.wait() == 0
            assert server.sent_bytes <= len(_BLOB) + WINDOW_BYTES

    with Mosquitto(tmp_path) as broker:
        run(main(broker.port))
    assert Store(tmp_path / "device").read(_NAME) == _BLOB
