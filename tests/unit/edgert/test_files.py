"""Durable writes: the old content or the new."""

from pathlib import Path

import pytest

from edgert.errors import StoreError
from edgert.files import replacing, replacing_folder, write_durable
from tests.support.disk import full_disk


def test_a_written_file_has_the_content_and_the_permissions(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key"
    write_durable(path, b"secret", mode=0o600)
    assert path.read_bytes() == b"secret"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_keeps_the_old_content_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_durable(path, b"old")
    with full_disk(100), pytest.raises(StoreError, match="cannot write") as caught:
        write_durable(path, b"n" * 1000)
    assert caught.value.hint
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_in_the_block_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_durable(path, b"old")
    with pytest.raises(KeyError), replacing(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise KeyError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot write"):
        write_durable(tmp_path / "f" / "state", b"x")


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "a" / "b") as temporary:
        (temporary / "one").write_bytes(b"1")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "one").read_bytes() == b"1"


def test_a_folder_does_not_appear_on_a_full_disk(tmp_path: Path) -> None:
    with full_disk(100), pytest.raises(StoreError), replacing_folder(tmp_path / "out") as temporary:  # noqa: PT012
        (temporary / "one").write_bytes(b"1")
        (temporary / "two").write_bytes(b"2" * 1000)
    assert list(tmp_path.iterdir()) == []
