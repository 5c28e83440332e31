"""What must never happen to a device: Mosquitto, server and two agents are real, only the attacks are ours.

Every test ends by asking the device over HTTP: the model it had before still answers.
"""

import asyncio
import json
import re
import signal
import sqlite3
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from edgert.bundle import Bundle, create
from edgert.clock import SystemClock
from edgert.envelope import DESIRED_TYPE, SigningKey, sign
from edgert.errors import LinkError
from edgert.manifest import Artifact
from edgert.values import digest
from edgert.wire import topics
from edgert.wire.link import Link
from edgert.wire.messages.base import Message
from edgert.wire.messages.blob import CHUNK_BYTES, Get
from edgert.wire.transports.base import Broker, Will
from edgert.wire.transports.mqtt import MqttTransport
from edgert.wire.twin import Assignment, Desired, Reported
from ota import keys
from ota.broker import SERVER_NAME
from ota.config import Home
from ota.operations.actor import local_operator
from ota.operations.release import publish
from ota.operations.spread import rollout_start
from tests.support.broker import free_port
from tests.support.models import bundle_file
from tests.support.stand import Stand, until

pytestmark = [pytest.mark.journey, pytest.mark.timeout(170), pytest.mark.xdist_group("safety")]

_MODEL = "tiny"
_BIG_BYTES = 48 << 20
_SILENCE_S = 1.0


class _Field:
    """The stand with one model on `box1`, and `box2` enrolled beside it."""

    def __init__(self, stand: Stand, bundle: Path) -> None:
        self.stand = stand
        self.bundle = bundle
        self.fleet = stand.fleet
        self.endpoint = ""

    def release(self, extra: bytes) -> int:
        """Publish the model again with another file in its bundle; gives the version."""
        path = _padded(self.bundle, self.stand.folder / f"{digest(extra)[7:19]}.edgert", extra)
        return int(publish(self.fleet, local_operator(), [path], without_source=True)["version"])

    def roll_out(self, version: int) -> None:
        rollout_start(self.fleet, local_operator(), _MODEL, version=version, names=["box1"])

    def reported(self) -> Reported:
        """The last state `box1` reported, as the server keeps it."""
        row = self.stand.device("box1")
        return Reported.model_validate({"device": "box1", "agent": "", "profile": "x86-64", **_known(row)})

    def serves(self) -> int:
        """The version that answers an inference request on `box1` now."""
        body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.5] * 4}]}
        with urllib.request.urlopen(
            f"{self.endpoint}/v2/models/{_MODEL}/infer", data=json.dumps(body).encode(), timeout=10
        ) as answer:
            return int(json.load(answer)["model_version"])

    def complaints(self, words: str) -> int:
        """How many warnings of `box1` hold these words."""
        lines = self.stand.log("box1").splitlines()
        return sum(words in line and (" WARNING " in line or " ERROR " in line) for line in lines)

    def refuses(self, version: int, reason: str) -> None:
        """Wait until `box1` said why it does not take `version`; the one before must go on answering."""
        before = self.serves()
        self.roll_out(version)
        until(f"box1 to refuse version {version}: {reason}", lambda: self.complaints(f"FAILED, {reason}"))
        until("the rollout to be taken back", lambda: self.stand.model("box1", _MODEL).get("phase") == "IDLE")
        assert self.serves() == before

    def given(self) -> int:
        """How often the broker handed an assignment or a data frame to `box1`."""
        assert self.stand.broker is not None
        topic = f"{topics.ROOT}/d/box1/"
        wanted = (f"{topic}desired", f"{topic}data")
        lines = self.stand.broker.log.splitlines()
        return sum("Sending PUBLISH to box1" in line and any(name in line for name in wanted) for line in lines)

    def server_connected(self) -> bool:
        """Whether the last the broker said of the server is that it came."""
        assert self.stand.broker is not None
        said = re.findall(rf"(New client) connected .* as {SERVER_NAME} |Client {SERVER_NAME} ", self.stand.broker.log)
        return bool(said and said[-1])

    def quiet(self) -> None:
        """Wait until nothing is under way between the server and `box1`: attacks before threw the server off."""
        row: dict[str, Any] = {}

        def settled() -> bool:
            row.update(self.stand.device("box1"))
            return self.server_connected() and row["online"] and row["accepted_revision"] == row["revision"]

        until("box1 to follow the server again", settled)
        last, since_s = self.given(), time.monotonic()

        def silent() -> bool:
            nonlocal last, since_s
            now = self.given()
            if now != last:
                last, since_s = now, time.monotonic()
            return time.monotonic() - since_s > _SILENCE_S

        until("box1 to have been given everything", silent, pause_s=0.1)

    async def hostile(self, act: Callable[[Link], Any]) -> None:
        """Do something with the rights of the server, which is thrown off the broker by that and comes back."""
        home = Home.open(self.stand.home)
        folder = home.authority
        broker = Broker("127.0.0.1", home.settings.port, SERVER_NAME, folder / "ca.pem", folder / "server.pem",
                        folder / "server.key")  # fmt: skip
        transport = MqttTransport(broker)
        await transport.connect()
        try:
            await act(Link(transport, SystemClock()))
        finally:
            await transport.close()


def _on_disk(path: Path) -> int:
    """Bytes of a (sparse) file that were written; 0 when it is gone."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _known(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("models", "endpoint", "received_bytes", "sent_bytes") if key in row}


def _padded(bundle: Path, path: Path, extra: bytes) -> Path:
    """The same model with one more file in its bundle: another digest, another download."""
    opened = Bundle.open(bundle)
    more = Artifact(role="labels", format="txt", file="more.txt", digest=digest(extra), size_bytes=len(extra))
    manifest = opened.manifest.model_copy(update={"profile": "x86-64", "artifacts": (*opened.manifest.artifacts, more)})
    parts = {artifact.digest: opened.read(artifact) for artifact in opened.manifest.artifacts}
    create(path, manifest, parts | {more.digest: extra})
    return path


def _identity(stand: Stand, device: str, client_id: str | None = None) -> MqttTransport:
    """A connection with the certificate of a device that its agent is not using now, under any client id."""
    port, folder = Home.open(stand.home).settings.port, stand.state(device) / "identity"
    broker = Broker("127.0.0.1", port, client_id or device, folder / "ca.pem", folder / "certificate.pem",
                    folder / "key.pem")  # fmt: skip
    return MqttTransport(broker, ack_timeout_s=3)


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Field]:
    folder = tmp_path_factory.mktemp("safety")
    bundle_file(folder / "tiny.edgert")
    with Stand(folder) as stand:
        stand.up(free_port())
        for device in ("box1", "box2"):
            stand.agent(device)
        until("two devices", lambda: all(stand.device(device).get("online") for device in ("box1", "box2")))
        field = _Field(stand, folder / "tiny.edgert")
        field.roll_out(field.release(b"the first"))
        until("the first release", lambda: stand.model("box1", _MODEL).get("version") == 1)
        field.endpoint = str(stand.device("box1")["endpoint"])
        stand.stop("box2")
        yield field


def test_kill_in_the_middle_of_a_download_is_finished_after_the_restart(field: _Field) -> None:
    stand = field.stand
    before = field.serves()
    version = field.release(digest(b"big").encode() * (_BIG_BYTES // 71))
    partial = stand.state("box1") / "store" / "partial"
    field.roll_out(version)
    until("8 MiB of the download", lambda: any(_on_disk(path) > 8 << 20 for path in partial.iterdir()), pause_s=0)
    assert field.serves() == before
    assert stand.stop("box1", signal.SIGKILL) == -signal.SIGKILL
    assert list(partial.glob("*.have")), "the kill came too late to prove anything"
    stand.agent("box1")
    until("the release after the restart", lambda: stand.model("box1", _MODEL).get("version") == version)
    field.endpoint = str(stand.device("box1")["endpoint"])
    (kept, count) = map(int, re.findall(r"went on with .*: (\d+) of (\d+) chunks", stand.log("box1"))[-1])
    assert 0 < kept < count
    received = field.reported().received_bytes
    assert received < (count - kept) * CHUNK_BYTES + (1 << 20), "it downloaded again what it had"
    assert field.serves() == version


def test_one_flipped_byte_in_a_blob_is_refused(field: _Field) -> None:
    extra = b"a blob that the way damages" * 1000
    version = field.release(extra)
    blob = field.fleet.store.path(digest(extra))
    damaged = bytearray(extra)
    damaged[1234] ^= 1
    blob.write_bytes(damaged)
    field.refuses(version, f"the downloaded bytes are not blob {digest(extra)}")


def test_metadata_signed_by_a_wrong_key_is_refused(field: _Field) -> None:
    timestamp = field.fleet.home.metadata / "timestamp.json"
    version = field.release(b"signed by somebody else")
    honest = timestamp.read_bytes()
    forged = Metadata.from_bytes(honest)
    forged.signed.version += 1
    forged.sign(CryptoSigner.generate_ed25519())
    timestamp.write_bytes(forged.to_bytes())
    try:
        before, count = field.serves(), field.complaints("metadata was refused: timestamp was signed by")
        field.roll_out(version)
        until(
            "box1 to refuse the metadata",
            lambda: field.complaints("metadata was refused: timestamp was signed by") > count,
        )
        assert field.serves() == before
    finally:
        timestamp.write_bytes(honest)
    until("the honest release", lambda: field.stand.model("box1", _MODEL).get("version") == version, 60)
    assert field.serves() == version


def test_metadata_of_yesterday_is_refused(field: _Field) -> None:
    folder = field.fleet.home.metadata
    old = (folder / "timestamp.json").read_bytes()
    seen = field.release(b"today")
    field.roll_out(seen)
    until("the release of today", lambda: field.stand.model("box1", _MODEL).get("version") == seen)
    honest = (folder / "timestamp.json").read_bytes()
    version = field.release(b"tomorrow")
    newest = (folder / "timestamp.json").read_bytes()
    assert len({old, honest, newest}) == 3
    (folder / "timestamp.json").write_bytes(old)
    try:
        count = field.complaints("metadata was refused: ")
        field.roll_out(version)
        until("box1 to refuse old metadata", lambda: field.complaints("metadata was refused: ") > count)
        assert field.serves() == seen
    finally:
        (folder / "timestamp.json").write_bytes(newest)
    until("the release of tomorrow", lambda: field.stand.model("box1", _MODEL).get("version") == version, 60)


@pytest.mark.parametrize("kind", ["expired", "foreign", "unknown key", "replayed", "not an envelope"])
def test_a_desired_that_is_not_for_us_is_refused(field: _Field, kind: str) -> None:
    stand = field.stand
    before, now = field.serves(), datetime.now(UTC)
    state = json.loads((stand.state("box1") / "state.json").read_bytes())
    revision = int(state["desired"]["revision"])
    part = Assignment.model_validate(state["desired"]["models"][0]).model_copy(update={"version": 1})
    genuine = Desired(device="box1", revision=revision + 1, issued=now, expires=now + timedelta(days=1), models=(part,))
    key = keys.envelope_key(field.fleet.home.keys, "assignment")
    forged = {
        "expired": lambda: _signed(
            genuine.model_copy(update={"issued": now - timedelta(2), "expires": now - timedelta(1)}), key
        ),
        "foreign": lambda: _signed(genuine.model_copy(update={"device": "box2"}), key),
        "unknown key": lambda: _signed(genuine, SigningKey()),
        "replayed": lambda: _signed(genuine.model_copy(update={"revision": revision - 1}), key),
        "not an envelope": lambda: b'{"payload": "' + b"A" * 300,
    }[kind]()
    count = field.complaints("an assignment was not followed")
    asyncio.run(field.hostile(lambda link: link.send_raw(topics.device("box1", "desired"), forged, retain=True)))
    until("box1 to refuse it", lambda: field.complaints("an assignment was not followed") > count)
    assert field.serves() == before
    after = json.loads((stand.state("box1") / "state.json").read_bytes())
    assert after["desired"]["revision"] == revision


def test_a_second_device_achieves_nothing_with_the_first_ones_name(field: _Field) -> None:
    """Broker return codes lie: only what arrives, and what the first device and the server notice, is proof."""
    stand = field.stand
    assert stand.broker is not None
    field.quiet()
    reconnections, delivered = stand.log("box1").count("connected to the broker as box1"), field.given()
    state_before = field.reported()
    revision = stand.device("box1")["accepted_revision"]
    got = asyncio.run(_impersonate(stand, revision))
    assert got == [], "box2 received what is box1's"
    assert field.given() == delivered, "box2 made something reach box1"
    assert "Denied PUBLISH from box2" in stand.broker.log
    assert stand.log("box1").count("connected to the broker as box1") == reconnections, "box1 was thrown off"
    state = field.reported()
    assert state.endpoint == state_before.endpoint
    assert state.models[_MODEL].digest == state_before.models[_MODEL].digest
    assert stand.device("box1")["online"]
    with sqlite3.connect(stand.home / "fleet.db") as database:
        dump = "\n".join(database.iterdump())
    assert "evil" not in dump, "the server took box2's word for box1's"
    assert field.serves()


async def _impersonate(stand: Stand, revision: int) -> list[str]:
    """Everything box2 can try against box1; gives the topics of box1 that reached box2."""
    got: list[str] = []
    transport = _identity(stand, "box2", client_id="box1")
    box1_will = Will(topics.device("box1", "online"), b'{"format":1,"online":false}')
    await transport.connect(box1_will)
    link = Link(transport, SystemClock())
    tasks = []
    for pattern in (f"{topics.ROOT}/d/box1/#", f"{topics.ROOT}/d/#", "#", topics.device("box1", "data")):
        with suppress(LinkError):
            tasks.append(asyncio.create_task(_collect(await link.listen(pattern), got)))
    fake = Reported(device="box1", agent="evil", profile="x86-64", revision=revision + 100, endpoint="http://evil")
    hostile: list[tuple[str, Message]] = [
        (topics.device("box1", "state"), fake),
        (topics.device("box1", "get"), Get(transfer=666, name="metadata/timestamp.json", offset=0, length=1000)),
        (topics.device("box2", "state"), Reported(device="box2", agent="here", profile="x86-64")),
    ]
    for topic, message in hostile:
        with suppress(LinkError):
            await link.send(topic, message)
    with suppress(LinkError):
        await link.send_raw(topics.device("box1", "desired"), b"evil", retain=True)
    await asyncio.to_thread(until, "what box2 may do", lambda: stand.device("box2").get("agent") == "here")
    await transport.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return [topic for topic in got if "/box2/" not in topic and "/j/" not in topic]


async def _collect(deliveries: Any, into: list[str]) -> None:
    into.extend([delivery.topic async for delivery in deliveries])


def _signed(desired: Desired, key: SigningKey) -> bytes:
    return sign(DESIRED_TYPE, desired.encode(), key)
