"""What the fleet signed: every way to lie with metadata is refused, and the clock is ours alone."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from agents.update.trust import Trust
from edgert.errors import LinkError, RefusedError, StoreError
from edgert.store import Store
from edgert.wire.fleet import FLEET_KEYS
from edgert.wire.twin import Assignment
from tests.support.signed import START, SignedFleet

PATH = "models/tiny/1/generic-cpu.json"
IMAGE = b'{"an": "image"}'


class Box:
    def __init__(self, folder: Path) -> None:
        self.fleet = SignedFleet()
        self.folder = folder
        self.now = START
        self.assignment = self.published(IMAGE)

    def published(self, image: bytes) -> Assignment:
        digest = self.fleet.add(PATH, image)
        self.fleet.publish(bump=True)
        return Assignment(model="tiny", version=1, target=PATH, digest=digest, size_bytes=len(image))

    def trust(self, time: Callable[[], datetime] | None = None) -> Trust:
        return Trust(
            self.folder / "tuf",
            self.fleet.pinned,
            self.fleet,
            Store(self.folder / "store"),
            time or (lambda: self.now),
            deadline_s=5,
        )

    def refresh(self) -> None:
        asyncio.run(self.trust().refresh())

    def refused(self, words: str, what: Callable[[Trust], Awaitable[object]] = Trust.refresh) -> RefusedError:
        with pytest.raises(RefusedError, match=words) as caught:
            asyncio.run(_awaited(what(self.trust())))
        assert caught.value.hint
        return caught.value


async def _awaited(work: Awaitable[object]) -> object:
    return await work


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def test_a_signed_image_is_given_and_kept_from_being_fetched_twice(box: Box) -> None:
    async def run() -> None:
        assert await box.trust().image(box.assignment) == IMAGE
        Store(box.folder / "store").add(IMAGE)
        box.fleet.asked.clear()
        assert await box.trust().image(box.assignment) == IMAGE
        assert box.assignment.digest not in box.fleet.asked

    asyncio.run(run())


def test_the_fleet_keys_are_those_that_were_signed(box: Box) -> None:
    keys = asyncio.run(box.trust().fleet_keys())
    assert keys == box.fleet.fleet_keys()


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_an_expired_role_is_refused(role: str, box: Box) -> None:
    getattr(box.fleet, role).expires = START + timedelta(days=1)
    if role == "root":
        box.fleet.rotate("timestamp")
    box.fleet.publish(bump=True)
    box.refresh()
    box.now = START + timedelta(days=2)
    box.refused("expired")


def test_time_comes_from_outside_and_not_from_the_system_clock(box: Box) -> None:
    """The metadata here ended long before or after any real today: only the time we give can decide both ways."""
    box.now = START + timedelta(days=9)
    box.refresh()
    box.now = START + timedelta(days=11)
    box.refused("expired")
    far = box.fleet
    for role in ("root", "timestamp", "snapshot", "targets"):
        getattr(far, role).expires = datetime(2090, 1, 1, tzinfo=START.tzinfo)
    far.rotate("timestamp")
    far.publish(bump=True)
    box.now = datetime(2089, 12, 31, tzinfo=START.tzinfo)
    box.refresh()
    box.now = datetime(2090, 1, 2, tzinfo=START.tzinfo)
    box.refused("expired")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_older_metadata_than_was_seen_is_refused(role: str, box: Box) -> None:
    box.fleet.publish(bump=True)
    box.refresh()
    getattr(box.fleet, role).version -= 1
    roles = {"timestamp": (), "snapshot": ("timestamp",), "targets": ("snapshot", "timestamp")}[role]
    for later in roles:
        getattr(box.fleet, later).version += 1
    box.fleet.publish((role, *roles))
    error = box.refused("refused")
    assert "older" in error.hint


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_metadata_signed_by_a_foreign_key_is_refused(role: str, box: Box) -> None:
    box.refresh()
    box.fleet.publish(bump=True)
    foreign = box.fleet.signed(role, [CryptoSigner.generate_ed25519()])
    name = "timestamp.json" if role == "timestamp" else f"{getattr(box.fleet, role).version}.{role}.json"
    box.fleet.files[f"metadata/{name}"] = foreign
    box.refused("refused")


def test_a_root_that_the_old_root_did_not_sign_is_refused(box: Box) -> None:
    box.refresh()
    box.fleet.rotate("root")
    name = f"metadata/{box.fleet.root.version}.root.json"
    box.fleet.files[name] = box.fleet.signed("root", box.fleet.signers["root"])
    box.refused("refused")


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_a_rotated_key_is_followed(role: str, box: Box) -> None:
    box.refresh()
    box.fleet.rotate(role)
    box.fleet.publish(bump=True)
    assert asyncio.run(box.trust().image(box.assignment)) == IMAGE


def test_a_flipped_byte_in_a_target_is_refused(box: Box) -> None:
    box.fleet.files[box.assignment.digest] = IMAGE[:-1] + b"!"
    box.refused("not what the fleet signed", lambda trust: trust.image(box.assignment))


def test_a_flipped_byte_in_the_keys_is_refused(box: Box) -> None:
    digest = "sha256:" + box.fleet.targets.targets[FLEET_KEYS].hashes["sha256"]
    box.fleet.files[digest] = box.fleet.files[digest][:-1] + b" "
    box.refused("not what the fleet signed", Trust.fleet_keys)


def test_an_assignment_that_names_another_image_than_the_signed_one_is_refused(box: Box) -> None:
    other = box.assignment.model_copy(update={"digest": "sha256:" + "0" * 64})
    box.refused("another bundle", lambda trust: trust.image(other))


def test_a_target_that_was_never_published_is_refused(box: Box) -> None:
    other = box.assignment.model_copy(update={"target": "models/tiny/9/generic-cpu.json"})
    box.refused("names no target", lambda trust: trust.image(other))


def test_a_broker_that_is_away_is_no_refusal(box: Box) -> None:
    box.fleet.away = True
    with pytest.raises(LinkError) as caught:
        box.refresh()
    assert (caught.value.message, caught.value.hint) == ("the broker is away", "wait")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"signed": {}, "signatures": []}'])
@pytest.mark.parametrize("name", ["timestamp.json", "snapshot.json", "targets.json", "root_history/1.root.json"])
def test_metadata_torn_by_a_power_cut_is_fetched_anew(name: str, content: bytes, box: Box) -> None:
    box.refresh()
    (box.folder / "tuf" / name).write_bytes(content)
    assert asyncio.run(box.trust().image(box.assignment)) == IMAGE


def test_a_folder_python_tuf_cannot_work_with_is_begun_anew_from_the_pinned_root(box: Box) -> None:
    box.refresh()
    link = box.folder / "tuf" / "root.json"
    link.unlink()
    link.mkdir()
    assert asyncio.run(box.trust().image(box.assignment)) == IMAGE


def test_metadata_that_cannot_be_kept_is_said(box: Box) -> None:
    (box.folder / "tuf").write_bytes(b"something else is in the way of the folder")
    with pytest.raises(StoreError, match="cannot keep the fleet's metadata") as caught:
        box.refresh()
    assert caught.value.hint


def test_what_was_kept_is_flushed_to_the_disk(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: set[str] = set()
    real = os.fsync

    def note(handle: int) -> None:
        flushed.add(Path(f"/proc/self/fd/{handle}").readlink().name)
        real(handle)

    monkeypatch.setattr(os, "fsync", note)
    box.refresh()
    assert {"timestamp.json", "snapshot.json", "targets.json", "1.root.json", "tuf", "root_history"} <= flushed
