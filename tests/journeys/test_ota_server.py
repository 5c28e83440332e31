"""A fleet's server as a real process behind a real Mosquitto, spoken to by boxes made of nothing but messages."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from edgert.bundle import Bundle, parse_image
from edgert.envelope import DESIRED_TYPE, verify
from edgert.errors import LinkError, NotFoundError, RefusedError
from edgert.identity import make_key, make_request
from edgert.store import Store
from edgert.values import digest
from edgert.wire import topics
from edgert.wire.fleet import FLEET_KEYS, FleetKeys, bundle_target
from edgert.wire.link import Link
from edgert.wire.messages.claim import ClaimReply, ClaimRequest
from edgert.wire.transports.base import Subscription
from edgert.wire.transports.mqtt import MqttTransport
from edgert.wire.twin import Desired, ModelState, Reported
from ota.fleet import Fleet
from ota.operations.actor import local_operator
from ota.operations.enrol import claims_list, claims_new, devices_list
from ota.operations.release import publish
from ota.operations.spread import rollout_start, rollout_status
from ota.store import releases
from tests.support.broker import Mosquitto, free_port
from tests.support.fleet import RawBox, broker_of, bundle_file, claim, connected, enrol, fleet
from tests.support.loop import run
from tests.support.stand import until

pytestmark = [pytest.mark.journey, pytest.mark.xdist_group("ota-server")]
ACTOR = local_operator()


@dataclass
class Stage:
    folder: Path
    fleet: Fleet
    broker: Mosquitto
    server: "subprocess.Popen[bytes]"

    def kit(self, device: str) -> Path:
        kit = self.folder / "kits" / device
        claims_new(self.fleet, ACTOR, device, kit)
        return kit

    def box(self, device: str) -> "Box":
        kit = self.kit(device)
        return Box(device, kit, *enrol(kit, device))

    def keys(self) -> dict[str, bytes]:
        target = self.fleet.repository.targets()[FLEET_KEYS]
        return FleetKeys.decode(self.fleet.store.read(target.digest)).for_assignment()

    def release(self, name: str, content: bytes) -> int:
        path = self.folder / f"{name}-{digest(content)[7:15]}.edgert"
        bundle_file(path, content=content, model=name)
        return int(publish(self.fleet, ACTOR, [path])["version"])


@dataclass
class Box:
    name: str
    kit: Path
    certificate: Path
    key: Path

    @asynccontextmanager
    async def there(self):  # type: ignore[no-untyped-def]
        transport = MqttTransport(broker_of(self.kit, self.certificate, self.key, self.name))
        await transport.connect()
        try:
            async with RawBox(self.name, transport) as box:
                yield box
        finally:
            await transport.close()


def _serve(home: Path, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "edgert", "ota", "serve", str(home)], stdout=output, stderr=output
        )


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("stage")
    port = free_port()
    made = fleet(folder, port=port)
    with Mosquitto(made.home.broker, made.home.broker / "mosquitto.conf", port=port) as broker:
        server = _serve(made.home.root, folder / "server.log")
        until("the server", lambda: "serving" in (folder / "server.log").read_text())
        try:
            yield Stage(folder, made, broker, server)
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(15) == 0
            made.close()


async def _desired(subscription: Subscription, keys: dict[str, bytes], revision: int) -> Desired:
    async for delivery in subscription:
        desired = Desired.decode(verify(delivery.payload, DESIRED_TYPE, keys))
        if desired.revision >= revision:
            return desired
    raise AssertionError("the subscription ended")


def _reported(box: str, desired: Desired, *, phase: str = "IDLE", error: str = "") -> Reported:
    models = {
        part.model: ModelState.model_validate(
            {"version": part.version, "digest": part.digest, "slot": "A", "phase": phase, "error": error}
            if phase == "IDLE"
            else {"phase": phase, "target_version": part.version, "error": error}
        )
        for part in desired.models
    }
    return Reported(device=box, agent="test", profile="x86-64", revision=desired.revision, models=models)


def test_a_box_enrols_pulls_a_signed_release_and_ends_its_rollout(stage: Stage) -> None:
    version = stage.release("alpha", b"alpha one" * 100_000)
    box = stage.box("puller")

    async def go() -> None:
        async with box.there() as raw:
            wishes = await raw.link.listen(topics.device("puller", "desired"))
            first = await _desired(wishes, stage.keys(), 1)
            assert first.models == ()
            await raw.online()
            rollout = rollout_start(stage.fleet, ACTOR, "alpha", names=["puller"])["rollout"]
            desired = await _desired(wishes, stage.keys(), 2)
            (part,) = desired.models
            assert (part.model, part.version) == ("alpha", version)
            targets = await _trusted_targets(raw, (box.kit / "root.json").read_bytes())
            assert targets[bundle_target("alpha", version, "x86-64")] == part.digest
            await _pull(raw, part.digest, part.size_bytes, stage.folder / "puller-store")
            await raw.say("state", _reported("puller", desired))
            status = await asyncio.to_thread(
                until,
                "the rollout",
                lambda: (s := rollout_status(stage.fleet, ACTOR, rollout))["status"] == "DONE" and s,
            )
            assert status["devices"]["puller"]["status"] == "DONE"

    run(go())
    (row,) = [row for row in devices_list(stage.fleet, ACTOR) if row["device"] == "puller"]
    assert row["online"]
    assert row["models"]["alpha"]["version"] == version
    assert next(row["state"] for row in claims_list(stage.fleet, ACTOR) if row["device"] == "puller") == "spent"


async def _trusted_targets(raw: RawBox, root: bytes) -> dict[str, str]:
    trusted = TrustedMetadataSet(root, EnvelopeType.METADATA)

    async def get(name: str) -> bytes:
        return await raw.fetcher.fetch_bytes(f"metadata/{name}", limit_bytes=1 << 20)

    timestamp = trusted.update_timestamp(await get("timestamp.json"))
    snapshot = trusted.update_snapshot(await get(f"{timestamp.snapshot_meta.version}.snapshot.json"))
    version = snapshot.meta["targets.json"].version
    targets = trusted.update_delegated_targets(await get(f"{version}.targets.json"), "targets", "root")
    return {path: f"sha256:{file.hashes['sha256']}" for path, file in targets.targets.items()}


async def _pull(raw: RawBox, image: str, size_bytes: int, folder: Path) -> None:
    store = Store(folder)
    await raw.fetcher.fetch_blob(store, image, size_bytes)
    for blob, size in parse_image(store.read(image)).blobs().items():
        await raw.fetcher.fetch_blob(store, blob, size)
    bundle = Bundle.load(store, image)
    assert all(bundle.read(artifact) for artifact in bundle.manifest.artifacts)


def test_a_source_is_never_given_to_a_box(stage: Stage) -> None:
    stage.release("secret", b"secret one")
    with stage.fleet.database.read() as session:
        source = releases.get(session, "secret").bundles[0].source
    assert source is not None
    assert stage.fleet.sources.get(source).is_file()
    box = stage.box("curious")

    async def go() -> None:
        async with box.there() as raw:
            for name in (source, "metadata/../keys/root.pem", "metadata/root.pem"):
                with pytest.raises(NotFoundError):
                    await raw.fetcher.fetch_bytes(name, limit_bytes=1 << 20)

    run(go())


def test_the_same_request_gets_the_same_certificate_and_another_key_nothing(stage: Stage) -> None:
    kit = stage.kit("twice")
    request = make_request(make_key(), "whatever")
    first, again = run(claim(kit, request)), run(claim(kit, request))
    assert first.certificate
    assert first.device == "twice"
    assert again.certificate == first.certificate
    other = run(claim(kit, make_request(make_key(), "twice")))
    assert not other.certificate
    assert "another key" in other.error
    assert "kit of its own" in other.hint


def test_a_spent_claim_gets_no_answer_any_more(stage: Stage) -> None:
    box = stage.box("spender")

    async def report() -> None:
        async with box.there() as raw:
            await raw.say("state", Reported(device="spender", agent="test", profile="x86-64"))
            await asyncio.to_thread(until, "the claim to be spent", lambda: _acl_of(stage, box.kit).count("topic") == 2)

    run(report())
    assert "deny edgert/v1/d/#" in _acl_of(stage, box.kit)
    with pytest.raises((TimeoutError, LinkError)):
        run(claim(box.kit, make_request(make_key(), "spender"), timeout_s=1.5))


def _acl_of(stage: Stage, kit: Path) -> str:
    name = (kit / "kit.json").read_text().split('"claim":"')[1].split('"')[0]
    text = (stage.fleet.home.broker / "acl").read_text()
    return text.split(f"user {name}\n")[1].split("\n\n")[0]


def test_a_claim_reaches_no_topic_of_any_device(stage: Stage) -> None:
    victim = stage.box("victim")
    kit = stage.kit("intruder")
    name = (kit / "kit.json").read_text().split('"claim":"')[1].split('"')[0]
    heard: list[str] = []

    async def listen(link: Link, pattern: str) -> None:
        with suppress(LinkError):
            async for delivery in await link.listen(pattern):
                heard.append(delivery.topic)  # noqa: PERF401  (kept when the task is cancelled)

    async def go() -> None:
        async with (
            victim.there() as raw,
            connected(broker_of(kit, kit / "claim.pem", kit / "claim.key", name)) as link,
        ):
            patterns = (
                "edgert/v1/#",
                "#",
                topics.device("victim", "desired"),
                topics.JOBS,
                "edgert/v1/claim/+/request",
            )
            ears = [asyncio.create_task(listen(link, pattern)) for pattern in patterns]
            forged = Reported(device="victim", agent="forged", profile="x86-64")
            for topic in (
                topics.device("victim", "state"),
                topics.device(name, "state"),
                topics.device("victim", "desired"),
            ):
                with suppress(LinkError):
                    await link.send(topic, forged, retain=True)
            await raw.say("state", Reported(device="victim", agent="honest", profile="x86-64"))
            await asyncio.to_thread(until, "the report", lambda: _agent(stage, "victim") == "honest")
            wishes = await raw.link.listen(topics.device("victim", "desired"))
            desired = await _desired(wishes, stage.keys(), 1)
            assert desired.device == "victim"
            replies = await link.listen(topics.claim(name, "reply"))
            request = ClaimRequest(request=make_request(make_key(), "x").decode(), profile="x86-64")
            await link.send(topics.claim(name, "request"), request)
            assert ClaimReply.decode((await anext(replies)).payload).device == "intruder"
            for ear in ears:
                ear.cancel()

    run(go())
    assert set(heard) <= {topics.claim(name, "reply")}
    assert _agent(stage, "victim") == "honest"
    assert name not in {row["device"] for row in devices_list(stage.fleet, ACTOR)}


def _agent(stage: Stage, device: str) -> str:
    return next((str(row["agent"]) for row in devices_list(stage.fleet, ACTOR) if row["device"] == device), "")


def test_a_device_that_fails_halts_the_rollout_and_is_given_its_old_version(stage: Stage) -> None:
    old = stage.release("beta", b"beta one")
    box = stage.box("failing")

    async def go() -> None:
        async with box.there() as raw:
            wishes = await raw.link.listen(topics.device("failing", "desired"))
            rollout_start(stage.fleet, ACTOR, "beta", names=["failing"])
            good = await _desired(wishes, stage.keys(), 2)
            await raw.say("state", _reported("failing", good))
            stage.release("beta", b"beta two")
            rollout = rollout_start(stage.fleet, ACTOR, "beta", names=["failing"])["rollout"]
            bad = await _desired(wishes, stage.keys(), 3)
            await raw.say("state", _reported("failing", bad, phase="FAILED", error="golden vectors differ"))
            back = await _desired(wishes, stage.keys(), 4)
            assert [part.version for part in back.models] == [old]
            status = rollout_status(stage.fleet, ACTOR, rollout)
            assert status["status"] == "HALTED"
            assert status["reason"] == "failing: golden vectors differ"

    run(go())


def test_a_broker_that_lost_everything_is_given_every_assignment_again(stage: Stage) -> None:
    box = stage.box("patient")

    async def wish() -> Desired:
        async with box.there() as raw:
            return await _desired(await raw.link.listen(topics.device("patient", "desired")), stage.keys(), 1)

    before = run(wish())
    stage.broker.kill()
    stage.broker.start()
    after = run(wish())
    assert after == before


def test_a_foreign_key_signs_nothing(stage: Stage) -> None:
    box = stage.box("sceptic")

    async def go() -> bytes:
        async with box.there() as raw:
            delivery = await anext(await raw.link.listen(topics.device("sceptic", "desired")))
            return bytes(delivery.payload)

    envelope = run(go())
    other = fleet(stage.folder / "other")
    target = other.repository.targets()[FLEET_KEYS]
    keys = FleetKeys.decode(other.store.read(target.digest)).for_assignment()
    other.close()
    with pytest.raises(RefusedError):
        verify(envelope, DESIRED_TYPE, keys)


def test_a_server_without_a_broker_says_so_and_fails(tmp_path: Path) -> None:
    made = fleet(tmp_path, port=free_port())
    made.close()
    done = subprocess.run(
        [sys.executable, "-m", "edgert", "ota", "serve", str(made.home.root)],
        capture_output=True, text=True, timeout=30, check=False, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: the broker 127.0.0.1:")
    assert "hint:" in done.stderr
