"""The state folder: closed to others, and usable on a disk that refuses."""

import os
import stat
from pathlib import Path

import pytest

from agents.control import Control
from agents.offers import Offers
from agents.state import Memory, StateFolder
from agents.update.machine import State
from edgert.errors import FaultError, StoreError
from tests.support.disk import small_disk
from tests.support.loop import run


def open_to_others(root: Path) -> list[str]:
    folders = [root, *(path for path in root.iterdir() if path.is_dir())]
    return [str(path) for path in folders if stat.S_IMODE(path.stat().st_mode) & 0o077]


def test_the_folder_and_all_folders_in_it_are_closed_to_others(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        StateFolder(tmp_path / "state")
        assert open_to_others(tmp_path / "state") == []
    finally:
        os.umask(before)


def test_a_state_folder_that_stood_open_is_closed(tmp_path: Path) -> None:
    root = tmp_path / "state"
    (root / "identity").mkdir(parents=True)
    (root / "store").mkdir(mode=0o755)
    root.chmod(0o755)
    StateFolder(root)
    assert open_to_others(root) == []


def test_a_folder_with_other_things_stays_as_open_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    tmp_path.chmod(0o755)
    StateFolder(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "identity").stat().st_mode) == 0o700


def test_a_lock_that_cannot_be_made_is_an_error_with_a_hint(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    (state.root / "lock").symlink_to(tmp_path / "nowhere" / "lock")
    with pytest.raises(StoreError, match="cannot lock") as caught:
        state.held()
    assert caught.value.hint


def test_a_read_only_folder_is_read_and_locked(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        state = StateFolder(disk.root / "state")
        state.remember(Memory(profile="x86-64"))
        with state.locked(lambda seconds: None):
            pass
        disk.protect()
        again = StateFolder(state.root)
        assert again.memory().profile == "x86-64"
        with again.locked(lambda seconds: None):
            assert again.held()
            with pytest.raises(FaultError, match="is running"), StateFolder(state.root).locked(lambda seconds: None):
                pass
        with pytest.raises(StoreError):
            again.remember(Memory())


def test_offers_and_control_start_on_a_disk_that_refuses(tmp_path: Path) -> None:
    class Nothing:
        def withdraw(self, model: str, revision: int) -> "object":
            return State(model=model)

    with small_disk(tmp_path / "disk") as disk:
        state = StateFolder(disk.root / "state")
        (state.control / "old.request").write_bytes(b"{}")
        disk.protect()
        offers = Offers(state.federated)
        assert offers.all() == []
        with pytest.raises(StoreError):
            _ = offers.store

        async def play() -> None:
            with pytest.raises(StoreError, match="cannot remove"):
                await Control(state.control, Nothing(), lambda: 0).run()  # type: ignore[arg-type]

        run(play())
