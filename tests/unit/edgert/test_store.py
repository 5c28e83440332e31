"""The store: blobs by digest, two slots per model."""

from pathlib import Path

import pytest

from edgert.bundle import Bundle
from edgert.errors import BundleError, StoreError, UsageError
from edgert.store import Slot, Store
from edgert.values import digest
from tests.support.disk import full_disk
from tests.support.models import bundle_file


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def slot(data: bytes, version: int = 1) -> Slot:
    return Slot(digest=digest(data), version=version)


def test_a_blob_is_found_by_its_digest(store: Store) -> None:
    key = store.add(b"weights")
    assert key == digest(b"weights")
    assert store.has(key)
    assert store.read(key) == store.path(key).read_bytes() == b"weights"
    assert store.add(b"weights") == key


def test_a_missing_and_a_damaged_blob_are_noticed(store: Store) -> None:
    with pytest.raises(BundleError, match="lacks"):
        store.read(digest(b"x"))
    key = store.add(b"weights")
    store.path(key).write_bytes(b"weighty")
    with pytest.raises(BundleError, match="damaged"):
        store.read(key)


@pytest.mark.parametrize("key", ["", "sha256:", "sha256:../../etc/passwd", "md5:" + "a" * 64, "sha256:" + "A" * 64])
def test_what_is_no_digest_is_no_path(store: Store, key: str) -> None:
    with pytest.raises(UsageError, match="not a digest"):
        store.path(key)


def test_a_finished_download_becomes_a_blob(store: Store) -> None:
    key = digest(b"content")
    store.partial(key).write_bytes(b"content")
    store.partial(key).with_suffix(".have").write_bytes(b"\xff")
    assert not store.has(key)
    store.adopt(key)
    assert store.read(key) == b"content"
    assert not list((store.root / "partial").iterdir())


def test_a_wrong_download_is_thrown_away(store: Store) -> None:
    key = digest(b"content")
    store.partial(key).write_bytes(b"Content")
    with pytest.raises(BundleError, match="not blob"):
        store.adopt(key)
    assert not store.has(key)
    assert not store.partial(key).exists()


def test_adopting_what_was_never_downloaded_is_an_error(store: Store) -> None:
    with pytest.raises(StoreError):
        store.adopt(digest(b"content"))


def test_a_full_disk_adds_no_half_blob(store: Store) -> None:
    with full_disk(10), pytest.raises(StoreError, match="cannot write"):
        store.add(b"w" * 100)
    assert not list((store.root / "blobs/sha256").iterdir())


def test_a_store_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot write"):
        Store(tmp_path / "f" / "store")


def test_the_first_model_goes_to_slot_a_and_the_next_to_slot_b(store: Store) -> None:
    assert (store.active("m"), store.active_slot("m"), store.models()) == (None, None, [])
    assert store.stage("m", slot(b"1")) == "A"
    assert store.active("m") is None
    store.switch("m", "A")
    assert store.stage("m", slot(b"2", 2)) == "B"
    assert store.active_slot("m") == slot(b"1")
    store.switch("m", "B")
    assert store.active_slot("m") == slot(b"2", 2)
    assert store.slot("m", "A") == slot(b"1")
    assert store.spare("m") == "A"
    assert store.models() == ["m"]


def test_switching_to_an_empty_slot_is_refused(store: Store) -> None:
    store.stage("m", slot(b"1"))
    with pytest.raises(StoreError, match="empty"):
        store.switch("m", "B")


def test_slots_survive_a_restart(store: Store) -> None:
    store.switch("m", store.stage("m", slot(b"1", 7)))
    assert Store(store.root).active_slot("m") == slot(b"1", 7)


def test_a_full_disk_while_switching_keeps_the_old_slot(store: Store) -> None:
    store.switch("m", store.stage("m", slot(b"1")))
    store.stage("m", slot(b"2", 2))
    with full_disk(0), pytest.raises(StoreError):
        store.switch("m", "B")
    assert store.active_slot("m") == slot(b"1")


@pytest.mark.parametrize("content", [b"", b"C", b"\xff\xfe", b"AB"])
def test_a_damaged_pointer_is_noticed(store: Store, content: bytes) -> None:
    store.switch("m", store.stage("m", slot(b"1")))
    (store.root / "models/m/active").write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        store.active("m")


def test_a_damaged_slot_is_noticed(store: Store) -> None:
    store.stage("m", slot(b"1"))
    (store.root / "models/m/A.json").write_bytes(b'{"digest": "x"}')
    with pytest.raises(StoreError, match="damaged"):
        store.slot("m", "A")


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", "A", "m\n"])
def test_a_hostile_model_name_is_refused(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a model"):
        store.active(name)


def test_collecting_keeps_what_the_two_slots_need(tmp_path: Path, store: Store) -> None:
    bundles = [Bundle.open(bundle_file(tmp_path / f"{i}.edgert", tolerance=1 + i)) for i in range(3)]
    for version, bundle in enumerate(bundles, start=1):
        store.ingest(bundle)
        store.switch("tiny", store.stage("tiny", Slot(digest=bundle.digest, version=version)))
    stray = store.add(b"stray")
    gone = store.collect()
    assert stray in gone
    assert bundles[0].digest in gone
    assert bundles[1].require("infer").digest not in gone
    for bundle in bundles[1:]:
        assert all(store.has(part.digest) for part in Bundle.load(store, bundle.digest).manifest.artifacts)
    assert store.collect() == []


def test_collecting_beside_a_damaged_slot_removes_nothing(store: Store) -> None:
    kept = store.add(b"perhaps needed")
    store.stage("m", slot(b"first"))
    (store.root / "models" / "m" / "A.json").write_bytes(b"\xff{")
    with pytest.raises(StoreError, match="slot A of model m is damaged"):
        store.collect()
    assert store.has(kept)


def test_a_damaged_bundle_is_not_ingested_whole(tmp_path: Path, store: Store) -> None:
    path = bundle_file(tmp_path / "m.edgert")
    bundle = Bundle.open(path)
    data = path.read_bytes()
    place = data.find(bundle.read(bundle.require("infer")))
    path.write_bytes(data[:place] + b"?" + data[place + 1 :])
    with pytest.raises(BundleError, match="damaged"):
        store.ingest(bundle)
    assert not store.has(bundle.digest)
