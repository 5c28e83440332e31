"""A fleet's home for tests, bundles and Sources nobody has to convert, and a box that speaks the wire by hand."""

import asyncio
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgert.bundle import create
from edgert.clock import Clock, SystemClock
from edgert.identity import make_key, make_request
from edgert.manifest import Artifact, Golden, Manifest, Provenance, Tensor, Training
from edgert.samples import pack_arrays
from edgert.values import Weights, digest
from edgert.wire import topics
from edgert.wire.fleet import Kit
from edgert.wire.link import Fetcher, Link
from edgert.wire.messages.base import Message
from edgert.wire.messages.blob import Get
from edgert.wire.messages.claim import ClaimReply, ClaimRequest
from edgert.wire.messages.device import Online
from edgert.wire.transports.base import Broker, Transport
from edgert.wire.transports.mqtt import MqttTransport
from ota.config import Home
from ota.fleet import Fleet
from ota.fleet import create as create_fleet

__all__ = [
    "WEIGHTS",
    "RawBox",
    "broker_of",
    "bundle_file",
    "claim",
    "connected",
    "enrol",
    "enrolled_row",
    "fleet",
    "source_file",
]

WEIGHTS: Weights = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, np.float32)}
ACCURACY = 0.9


def fleet(folder: Path, clock: Clock | None = None, **settings: object) -> Fleet:
    """A new fleet in ``folder/fleet``."""
    values: dict[str, object] = {"host": "127.0.0.1", "broker_user": "root" if os.geteuid() == 0 else ""}
    return create_fleet(folder / "fleet", Home.settings_of(values | settings), clock or SystemClock())


def bundle_file(path: Path, *, content: bytes = b"model", model: str = "tiny", profile: str = "x86-64") -> str:
    """Write a bundle (and its Source beside it) whose model nobody can run; returns its digest."""
    weights = pack_arrays(WEIGHTS)
    parts = (
        ("infer", "onnx", "model.onnx", content),
        ("train", "onnx", "train.onnx", b"train" + content),
        ("weights", "npz", "weights.npz", weights),
        ("golden", "npz", "golden.npz", pack_arrays({"input.x": np.zeros((1, 1, 3), np.float32)})),
    )
    artifacts = [
        {"role": role, "format": kind, "file": file, "digest": digest(data), "size_bytes": len(data)}
        for role, kind, file, data in parts
    ]
    manifest = Manifest(
        model=model,
        profile=profile,
        inputs=(Tensor(name="x", dtype="float32", shape=(None, 3)),),
        outputs=(Tensor(name="scores", dtype="float32", shape=(None, 2)),),
        artifacts=tuple(Artifact.model_validate(row) for row in artifacts),
        golden=Golden(count=1, tolerance={"scores": 0.0}),
        training=Training(
            batch_size=4, inputs=("x",), labels="y", sample_weight="sw", scalars=("lr",), parameters=("w", "b"),
            state=("vw", "vb"), loss="loss", correct="correct",
        ),
        provenance=Provenance(source=digest(content), recipe=digest(b"recipe"), tools={}),
    )  # fmt: skip
    bundle = create(path, manifest, {digest(data): data for _, _, _, data in parts})
    source_file(path.with_name(f"{path.stem}.source.tar"), bundle)
    return bundle


def source_file(path: Path, bundle: str, *, accuracy: float | None = ACCURACY, metric: str = "top1") -> None:
    """Write a Source that holds only its report."""
    chosen = {"precision": "int8", "accuracy": accuracy, "chosen": True}
    report = json.dumps({"format": 1, "bundle": bundle, "metric": metric, "candidates": [chosen]}).encode()
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("report.json")
        info.size = len(report)
        tar.addfile(info, io.BytesIO(report))


def enrolled_row(home: Fleet, name: str, profile: str = "x86-64") -> None:
    """Put a device into the database as if it had enrolled."""
    from ota.store import DeviceRow

    now = home.clock.now()
    with home.database.write() as session:
        session.add(DeviceRow(id=name, profile=profile, created=now, certificate_expires=now, revision=1))


@asynccontextmanager
async def connected(broker: Broker) -> AsyncIterator[Link]:
    """A connection as that identity."""
    transport = MqttTransport(broker)
    await transport.connect()
    try:
        yield Link(transport, SystemClock())
    finally:
        await transport.close()


def broker_of(kit: Path, certificate: Path, key: Path, name: str) -> Broker:
    """The broker a kit names, as the holder of that certificate."""
    parsed = Kit.decode((kit / "kit.json").read_bytes())
    return Broker(parsed.host, parsed.port, name, kit / "ca.pem", certificate, key)


async def claim(kit: Path, request: bytes, *, timeout_s: float = 10) -> ClaimReply:
    """What the server answers to a certificate request (PEM) sent under a kit's claim."""
    name = Kit.decode((kit / "kit.json").read_bytes()).claim
    async with connected(broker_of(kit, kit / "claim.pem", kit / "claim.key", name)) as link:
        replies = await link.listen(topics.claim(name, "reply"))
        async with asyncio.timeout(timeout_s):
            while True:  # the server may not have subscribed yet: ask again, as a box does
                await link.send(topics.claim(name, "request"), ClaimRequest(request=request.decode(), profile="x86-64"))
                try:
                    async with asyncio.timeout(1):
                        return ClaimReply.decode((await anext(replies)).payload)
                except TimeoutError:
                    continue


class RawBox:
    """A box that does what it is told by a test: no agent, only messages.

    Args:
        name: of the device.
        transport: connected by its owner.
    """

    def __init__(self, name: str, transport: Transport) -> None:
        self.name = name
        self.link = Link(transport, SystemClock())
        self.fetcher = Fetcher(self._ask, SystemClock(), timeout_s=0.5, stall_s=10)
        self._frames: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "RawBox":
        data = await self.link.listen(topics.device(self.name, "data"), qos=0)
        self._frames = asyncio.create_task(self._take(data))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._frames is not None:
            self._frames.cancel()
            await asyncio.gather(self._frames, return_exceptions=True)

    async def say(self, leaf: str, message: Message) -> None:
        """Publish on one of the box's own topics."""
        await self.link.send(topics.device(self.name, leaf), message, retain=leaf in ("state", "online"))

    async def online(self) -> None:
        """Say that it is there."""
        await self.say("online", Online(online=True))

    async def _ask(self, get: Get) -> None:
        await self.link.send(topics.device(self.name, "get"), get)

    async def _take(self, frames: Any) -> None:
        async for delivery in frames:
            self.fetcher.deliver(delivery.payload)


def enrol(kit: Path, name: str) -> tuple[Path, Path]:
    """Spend a kit: certificate and key files of the new device, beside the kit."""
    key = make_key()
    reply = asyncio.run(claim(kit, make_request(key, name)))
    assert reply.certificate, reply.error
    certificate, key_file = kit.with_suffix(".pem"), kit.with_suffix(".key")
    certificate.write_text(reply.certificate)
    key_file.write_bytes(key)
    return certificate, key_file
