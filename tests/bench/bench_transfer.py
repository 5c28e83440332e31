"""How long 20 MB take through Mosquitto, against an HTTP download from uvicorn in the same run.

``python -m tests.bench.bench_transfer [MEGABYTES] [ROUNDS]`` prints one line per way: seconds and the ratio to HTTP,
medians of interleaved rounds. Each sender is a process of its own; every way ends with the digest checked and the
file fsynced. Everything is on this machine: ratios count, not seconds.
"""

import asyncio
import hashlib
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.staticfiles import StaticFiles

from edgert.store import Store
from edgert.wire import topics
from edgert.wire.chunks import StoreSource, answer
from edgert.wire.messages.blob import Get
from edgert.wire.transports.base import Broker
from edgert.wire.transports.mqtt import MqttTransport
from tests.support.broker import Mosquitto, free_port
from tests.support.certificates import Certificates
from tests.support.receiver import fetch

_DEVICE = "box1"
_SERVER = "server"


def _broker(port: int, name: str, tls: str) -> Broker:
    if not tls:
        return Broker("127.0.0.1", port, name, insecure=True)
    folder = Path(tls)
    return Broker("127.0.0.1", port, name, folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key")


def _serve_http(port: int, folder: Path) -> None:
    app = Starlette()
    app.mount("/", StaticFiles(directory=folder))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


async def _serve_mqtt(port: int, folder: Path, tls: str) -> None:
    transport = MqttTransport(_broker(port, _SERVER, tls))
    await transport.connect()
    source = StoreSource(Store(folder))
    requests = await transport.subscribe(topics.every_device("get"))
    await transport.publish("ready", b"1", retain=True)
    async for delivery in requests:
        frame = answer(Get.decode(delivery.payload), source)
        await transport.publish(topics.device(_DEVICE, "data"), frame.encode(), qos=0)


def _http_s(port: int, name: str, target: Path) -> float:
    start = time.perf_counter()
    digest = hashlib.sha256()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}") as reply, target.open("wb") as file:
        while block := reply.read(256 << 10):
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != name:
        raise AssertionError("the download is damaged")
    return time.perf_counter() - start


async def _mqtt_s(broker: Broker, target: Path, digest: str, size: int) -> float:
    transport = MqttTransport(broker)
    await transport.connect()
    async with asyncio.timeout(20):
        await anext(await transport.subscribe("ready"))
    start = time.perf_counter()
    await fetch(transport, _DEVICE, Store(target), digest, size)
    seconds = time.perf_counter() - start
    await transport.close()
    return seconds


@contextmanager
def _sender(*words: object) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.bench_transfer", *map(str, words)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _await_port(port: int) -> None:
    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)


def _compare(megabytes: int, rounds: int) -> None:
    blob = random.Random(0).randbytes(megabytes * 1_000_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digest = Store(folder / "source").add(blob)
        certificates = Certificates.make(folder / "tls")
        for client in (_SERVER, _DEVICE):
            certificates.broker(client, 0)
        web = free_port()
        seconds: dict[str, list[float]] = {"http": [], "mqtt": [], "mqtt+tls": []}
        with (
            Mosquitto(folder) as plain,
            Mosquitto(folder, certificates.config()) as tls,
            _sender("http", web, folder / "source" / "blobs" / "sha256"),
            _sender("mqtt", plain.port, folder / "source", ""),
            _sender("mqtt", tls.port, folder / "source", folder / "tls"),
        ):
            _await_port(web)
            ways = {"mqtt": (plain.port, ""), "mqtt+tls": (tls.port, str(folder / "tls"))}
            for number in range(rounds):
                seconds["http"].append(_http_s(web, digest.removeprefix("sha256:"), folder / "http"))
                for way, (port, files) in ways.items():
                    broker = _broker(port, _DEVICE, files)
                    seconds[way].append(asyncio.run(_mqtt_s(broker, folder / f"{way}-{number}", digest, len(blob))))
    base = statistics.median(seconds["http"])
    for way, values in seconds.items():
        middle = statistics.median(values)
        sys.stdout.write(f"{way:9}{middle:7.3f} s {middle / base:5.2f} x http ({min(values):.3f}..{max(values):.3f})\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["http", port, source]:
            _serve_http(int(port), Path(source))
        case ["mqtt", port, source, tls_files]:
            asyncio.run(_serve_mqtt(int(port), Path(source), tls_files))
        case [*numbers]:
            _compare(*(int(word) for word in (numbers + ["20", "5"][len(numbers) :])))
