"""The signed repository: interrupted, repeated, worn out, and read by python-tuf's own client rules."""

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tuf.api.exceptions import ExpiredMetadataError
from tuf.api.metadata import Metadata
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from edgert.clock import ManualClock, SystemClock
from edgert.errors import StoreError, UsageError
from edgert.values import digest
from edgert.wire.fleet import FLEET_KEYS, FleetKeys
from ota import keys
from ota.repository import Repository
from tests.support.fleet import fleet


def client(folder: Path) -> dict[str, str]:
    """What a client that starts from the first root accepts now."""
    trusted = TrustedMetadataSet((folder / "1.root.json").read_bytes(), EnvelopeType.METADATA)
    timestamp = trusted.update_timestamp((folder / "timestamp.json").read_bytes())
    snapshot = trusted.update_snapshot((folder / f"{timestamp.snapshot_meta.version}.snapshot.json").read_bytes())
    version = snapshot.meta["targets.json"].version
    targets = trusted.update_delegated_targets((folder / f"{version}.targets.json").read_bytes(), "targets", "root")
    return {path: f"sha256:{file.hashes['sha256']}" for path, file in targets.targets.items()}


def test_a_client_accepts_what_was_added(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.repository.add({"models/m/1/p.json": b"image"})
    assert client(made.home.metadata)["models/m/1/p.json"] == digest(b"image")
    assert made.repository.targets()["models/m/1/p.json"].size_bytes == 5


def test_the_fleet_keys_are_signed_and_in_the_store(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    named = FleetKeys.decode(made.store.read(client(made.home.metadata)[FLEET_KEYS]))
    key = keys.envelope_key(made.home.keys, "assignment").public_bytes()
    assert list(named.for_assignment().values()) == [key]
    assert named.for_assignment().keys().isdisjoint(named.for_federation())


def test_the_same_target_again_changes_no_file(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.repository.add({"a": b"1"})
    before = {path.name: path.read_bytes() for path in made.home.metadata.iterdir()}
    made.repository.add({"a": b"1"})
    assert {path.name: path.read_bytes() for path in made.home.metadata.iterdir()} == before


@pytest.mark.parametrize("written", [("2.targets.json",), ("2.targets.json", "2.snapshot.json")])
def test_a_publish_cut_short_leaves_the_old_state_and_can_be_repeated(tmp_path: Path, written: tuple[str, ...]) -> None:
    made = fleet(tmp_path)
    folder = made.home.metadata
    old = (folder / "timestamp.json").read_bytes()
    made.repository.add({"cut": b"short"})
    for name in {"2.targets.json", "2.snapshot.json"} - set(written):
        (folder / name).unlink()
    (folder / "timestamp.json").write_bytes(old)
    assert client(folder).keys() == {FLEET_KEYS}
    made.repository.add({"cut": b"other"})
    assert client(folder)["cut"] == digest(b"other")


def test_two_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    made = fleet(tmp_path)

    def add(name: str) -> None:
        Repository(made.home, SystemClock()).add({name: name.encode()})

    threads = [threading.Thread(target=add, args=(f"t{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert client(made.home.metadata).keys() == {FLEET_KEYS, *(f"t{number}" for number in range(6))}


def test_what_is_past_half_of_its_life_is_signed_again(tmp_path: Path) -> None:
    clock = ManualClock(datetime.now(UTC))
    made = fleet(tmp_path, clock)
    assert not made.repository.refresh()
    clock.advance(0.6 * 86_400)
    assert made.repository.refresh()
    assert not (made.home.metadata / "2.snapshot.json").exists()
    clock.advance(16 * 86_400)
    assert made.repository.refresh()
    assert (made.home.metadata / "2.snapshot.json").exists()
    assert not (made.home.metadata / "2.targets.json").exists()
    clock.advance(46 * 86_400)
    assert made.repository.refresh()
    assert (made.home.metadata / "2.targets.json").exists()


def test_a_client_refuses_metadata_that_nobody_refreshed(tmp_path: Path) -> None:
    made = fleet(tmp_path, ManualClock(datetime(2020, 1, 1, tzinfo=UTC)), root_days=36_500)
    with pytest.raises(ExpiredMetadataError):
        client(made.home.metadata)


def test_every_role_has_a_key_of_its_own_closed_to_others(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    root = Metadata.from_bytes(made.repository.root()).signed
    ids = [key for role in keys.ROLES for key in root.roles[role].keyids]
    assert len(set(ids)) == len(keys.ROLES)
    assert root.consistent_snapshot
    assert {path.stat().st_mode & 0o777 for path in made.home.keys.iterdir()} == {0o600}


def test_keys_and_metadata_are_never_overwritten(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    with pytest.raises(UsageError, match="keys already"):
        keys.create(made.home.keys)
    with pytest.raises(UsageError, match="repository already"):
        made.repository.create()


def test_damaged_metadata_is_an_error_with_a_hint(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    (made.home.metadata / "timestamp.json").write_bytes(b"{")
    with pytest.raises(StoreError) as caught:
        made.repository.targets()
    assert caught.value.hint
