"""Publishing and rolling out, without a broker: what the database, the store and the repository hold afterwards."""

import sqlite3
import tarfile
from datetime import timedelta
from pathlib import Path

import pytest

from edgert.bundle import Bundle
from edgert.envelope import DESIRED_TYPE, verify
from edgert.errors import BundleError, RefusedError, StoreError, UsageError
from edgert.values import digest
from edgert.wire.fleet import FLEET_KEYS, FleetKeys, bundle_target
from edgert.wire.messages.device import Event
from edgert.wire.twin import Desired, ModelState
from ota import keys
from ota.devices import sign_desired
from ota.fleet import Fleet
from ota.operations.actor import Actor, Right, job_actor, local_operator
from ota.operations.enrol import devices_list
from ota.operations.release import publish
from ota.operations.spread import rollout_start, rollout_status
from ota.rollouts import engine
from ota.sources import beside, read_report
from ota.store import audit, devices, releases
from tests.support.fleet import bundle_file, enrolled_row, fleet, source_file

ACTOR = local_operator()


@pytest.fixture
def made(tmp_path: Path) -> Fleet:
    return fleet(tmp_path)


def release(made: Fleet, folder: Path, content: bytes, **options: str) -> int:
    path = folder / f"{digest(content)[7:15]}{options.get('profile', '')}.edgert"
    bundle_file(path, content=content, **options)
    return int(publish(made, ACTOR, [path])["version"])


def test_versions_count_from_one_and_every_blob_is_served(made: Fleet, tmp_path: Path) -> None:
    assert release(made, tmp_path, b"one") == 1
    assert release(made, tmp_path, b"two") == 2
    target = made.repository.targets()[bundle_target("tiny", 2, "x86-64")]
    bundle = Bundle.load(made.store, target.digest)
    assert all(bundle.read(artifact) for artifact in bundle.manifest.artifacts)


def test_a_release_has_one_bundle_per_profile(made: Fleet, tmp_path: Path) -> None:
    paths = [tmp_path / "a.edgert", tmp_path / "b.edgert"]
    for path, profile in zip(paths, ("x86-64", "raspberry-pi-5"), strict=True):
        bundle_file(path, profile=profile)
    result = publish(made, ACTOR, paths)
    assert {row["profile"] for row in result["bundles"]} == {"x86-64", "raspberry-pi-5"}
    with pytest.raises(UsageError, match="published already, as version 1"):
        publish(made, ACTOR, paths)
    with pytest.raises(UsageError, match="one bundle per profile"):
        publish(made, ACTOR, [paths[0], paths[0]])


def test_a_missing_or_foreign_source_stops_the_release(made: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "m.edgert"
    bundle = bundle_file(path)
    source_file(beside(path), digest(b"another bundle"))
    with pytest.raises(BundleError, match="belongs to bundle"):
        publish(made, ACTOR, [path])
    beside(path).write_bytes(b"rubbish")
    with pytest.raises(BundleError, match="not a source"):
        publish(made, ACTOR, [path])
    beside(path).unlink()
    with pytest.raises(UsageError, match="there is no source") as caught:
        publish(made, ACTOR, [path])
    assert "--no-source" in caught.value.hint
    assert made.repository.targets().keys() == {FLEET_KEYS}
    assert publish(made, ACTOR, [path], without_source=True)["bundles"][0]["digest"] == bundle


def test_a_release_cut_short_before_the_database_is_repeated_under_the_same_number(made: Fleet, tmp_path: Path) -> None:
    made.repository.add({bundle_target("tiny", 1, "x86-64"): b"left over"})
    assert release(made, tmp_path, b"one") == 1
    bundle = bundle_file(tmp_path / "again.edgert", content=b"one")
    assert made.repository.targets()[bundle_target("tiny", 1, "x86-64")].digest == bundle


def test_a_source_is_kept_apart_from_what_is_served(made: Fleet, tmp_path: Path) -> None:
    release(made, tmp_path, b"one")
    (kept,) = made.home.sources.iterdir()
    assert not made.store.has(f"sha256:{kept.stem}")
    assert made.sources.get(f"sha256:{kept.stem}") == kept
    kept.write_bytes(b"changed")
    with pytest.raises(Exception, match="damaged"):
        made.sources.get(f"sha256:{kept.stem}")


def test_an_actor_without_the_right_does_nothing(made: Fleet, tmp_path: Path) -> None:
    bundle_file(tmp_path / "m.edgert")
    with pytest.raises(RefusedError, match="may not publish"):
        publish(made, Actor("guest", frozenset({Right.READ})), [tmp_path / "m.edgert"])
    with pytest.raises(RefusedError, match="may not enrol"):
        job_actor("j").require(Right.ENROL)


def test_every_operation_leaves_a_line(made: Fleet, tmp_path: Path) -> None:
    release(made, tmp_path, b"one")
    enrolled_row(made, "box1")
    rollout_start(made, ACTOR, "tiny")
    with made.database.read() as session:
        lines = [(row.action, row.subject, row.actor) for row in audit.newest(session, 10)]
    assert lines == [("rollout", "tiny version 1", ACTOR.name), ("publish", "tiny version 1", ACTOR.name)]


def test_a_release_that_leaves_no_line_is_not_made(made: Fleet, tmp_path: Path) -> None:
    bundle_file(tmp_path / "m.edgert")
    with sqlite3.connect(made.home.database) as database:
        database.execute("ALTER TABLE audit RENAME TO elsewhere")
    database.close()
    with pytest.raises(StoreError, match="audit"):
        publish(made, ACTOR, [tmp_path / "m.edgert"])
    with made.database.read() as session:
        assert releases.latest_version(session, "tiny") == 0
    with sqlite3.connect(made.home.database) as database:
        database.execute("ALTER TABLE elsewhere RENAME TO audit")
    database.close()
    assert publish(made, ACTOR, [tmp_path / "m.edgert"])["version"] == 1


def test_a_rollout_goes_only_where_the_release_fits(made: Fleet, tmp_path: Path) -> None:
    release(made, tmp_path, b"one")
    with pytest.raises(UsageError, match="no enrolled device"):
        rollout_start(made, ACTOR, "tiny")
    enrolled_row(made, "box1")
    enrolled_row(made, "pi", profile="raspberry-pi-5")
    with pytest.raises(UsageError, match="does not fit pi"):
        rollout_start(made, ACTOR, "tiny", names=["box1", "pi"])
    with pytest.raises(UsageError, match="no plug-in named"):
        rollout_start(made, ACTOR, "tiny", strategy="by-magic")
    with pytest.raises(UsageError, match="no release of other"):
        rollout_start(made, ACTOR, "other")
    assert list(rollout_start(made, ACTOR, "tiny")["devices"]) == ["box1"]


def observe(made: Fleet, device: str, revision: int, **state: object) -> None:
    with made.database.write() as session:
        engine.observe_state(session, device, revision, {"tiny": ModelState.model_validate(state)})


def wanted(made: Fleet, device: str) -> tuple[int, dict[str, int]]:
    (row,) = [row for row in devices_list(made, ACTOR) if row["device"] == device]
    return row["revision"], row["desired"]


def test_a_rollout_is_done_when_every_device_answers_from_it(made: Fleet, tmp_path: Path) -> None:
    release(made, tmp_path, b"one")
    for name in ("box1", "box2"):
        enrolled_row(made, name)
    rollout = rollout_start(made, ACTOR, "tiny")["rollout"]
    assert wanted(made, "box1") == (2, {"tiny": 1})
    observe(made, "box1", 1, version=1, phase="IDLE")
    assert rollout_status(made, ACTOR, rollout)["devices"]["box1"]["status"] == "ASSIGNED"
    observe(made, "box1", 2, version=1, phase="DOWNLOAD")
    observe(made, "box1", 2, version=1, phase="IDLE")
    assert rollout_status(made, ACTOR, rollout)["status"] == "RUNNING"
    observe(made, "box2", 2, version=1, phase="IDLE")
    observe(made, "box2", 2, version=1, phase="IDLE")
    assert rollout_status(made, ACTOR, rollout)["status"] == "DONE"


def test_a_failure_gives_the_device_its_previous_version_under_a_higher_revision(made: Fleet, tmp_path: Path) -> None:
    enrolled_row(made, "box1")
    release(made, tmp_path, b"one")
    rollout_start(made, ACTOR, "tiny")
    observe(made, "box1", 2, version=1, phase="IDLE")
    release(made, tmp_path, b"two")
    rollout = rollout_start(made, ACTOR, "tiny")["rollout"]
    assert wanted(made, "box1") == (3, {"tiny": 2})
    with made.database.write() as session:
        event = Event(model="tiny", version=2, revision=3, phase="FAILED", error="too slow")
        engine.observe_event(session, "box1", event)
    assert wanted(made, "box1") == (4, {"tiny": 1})
    assert rollout_status(made, ACTOR, rollout)["reason"] == "box1: too slow"


def test_the_first_version_that_fails_is_taken_away(made: Fleet, tmp_path: Path) -> None:
    enrolled_row(made, "box1")
    release(made, tmp_path, b"one")
    rollout_start(made, ACTOR, "tiny")
    observe(made, "box1", 2, phase="FAILED", target_version=1, error="no backend")
    assert wanted(made, "box1") == (3, {})


def test_a_newer_rollout_halts_the_older_and_its_late_failure_takes_nothing_back(made: Fleet, tmp_path: Path) -> None:
    enrolled_row(made, "box1")
    release(made, tmp_path, b"one")
    old = rollout_start(made, ACTOR, "tiny")["rollout"]
    release(made, tmp_path, b"two")
    rollout_start(made, ACTOR, "tiny")
    assert "superseded" in rollout_status(made, ACTOR, old)["reason"]
    observe(made, "box1", 3, phase="FAILED", target_version=1, error="late news")
    assert wanted(made, "box1") == (3, {"tiny": 2})


def test_an_assignment_is_signed_for_one_device_by_the_key_that_tuf_names(made: Fleet, tmp_path: Path) -> None:

    enrolled_row(made, "box1")
    release(made, tmp_path, b"one")
    rollout_start(made, ACTOR, "tiny")
    now = made.clock.now()
    with made.database.write() as session:
        row = devices.get(session, "box1")
        envelope = sign_desired(row, keys.envelope_key(made.home.keys, "assignment"), now, timedelta(days=7))
    named = FleetKeys.decode(made.store.read(made.repository.targets()[FLEET_KEYS].digest))
    desired = Desired.decode(verify(envelope, DESIRED_TYPE, named.for_assignment()))
    assert (desired.device, desired.revision) == ("box1", 2)
    assert desired.expires - desired.issued == timedelta(days=7)
    assert desired.models[0].target == bundle_target("tiny", 1, "x86-64")
    with pytest.raises(RefusedError):
        verify(envelope, DESIRED_TYPE, named.for_federation())


@pytest.mark.parametrize("kind", ["link", "twice", "folder"])
def test_a_source_with_links_or_an_entry_twice_is_refused(tmp_path: Path, kind: str) -> None:
    bundle_file(tmp_path / "m.edgert")
    with tarfile.open(tmp_path / "m.source.tar", "a") as tar:
        info = tarfile.TarInfo({"link": "model.onnx", "twice": "report.json", "folder": "../model.onnx"}[kind])
        info.type = tarfile.SYMTYPE if kind == "link" else tarfile.REGTYPE
        info.linkname = "/etc/passwd" if kind == "link" else ""
        tar.addfile(info)
    with pytest.raises(BundleError, match="unexpected entry"):
        read_report(tmp_path / "m.source.tar")
