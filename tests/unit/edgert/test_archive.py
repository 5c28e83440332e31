"""Tars: same entries same bytes, and nothing but plain, allowed, single entries is ever read."""

import io
import tarfile
from pathlib import Path

import pytest

from edgert import archive
from edgert.errors import BundleError

_ENTRIES = [("b", b"second"), ("a", b"")]


def _places(path: Path, limit_bytes: int | None = None) -> dict[str, archive.Place]:
    return archive.places(path, {"a", "b"}.__contains__, noun="a box", hint="make one", limit_bytes=limit_bytes)


def _entry(name: str, kind: bytes = tarfile.REGTYPE, size: int = 3) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, "/etc/passwd"
    return info


def test_what_was_written_is_found_and_read(tmp_path: Path) -> None:
    path = tmp_path / "m.tar"
    archive.write(path, _ENTRIES)
    assert path.read_bytes() == archive.pack(_ENTRIES) == archive.pack(_ENTRIES)
    assert {name: archive.read(path, place) for name, place in _places(path).items()} == dict(_ENTRIES)


@pytest.mark.parametrize(
    "entries",
    [
        [_entry("c")],
        [_entry("../a")],
        [_entry("a"), _entry("a")],
        [_entry("a", tarfile.SYMTYPE, 0)],
        [_entry("a", tarfile.LNKTYPE, 0)],
        [_entry("a", tarfile.DIRTYPE, 0)],
        [_entry("a", tarfile.FIFOTYPE, 0)],
        [_entry("a", tarfile.CHRTYPE, 0)],
        [_entry("a", tarfile.GNUTYPE_SPARSE)],
    ],
)
def test_anything_but_plain_allowed_single_entries_is_refused(entries: list[tarfile.TarInfo], tmp_path: Path) -> None:
    path = tmp_path / "m.tar"
    with tarfile.open(path, "w") as tar:
        for info in entries:
            tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(BundleError, match="is not a box") as caught:
        _places(path)
    assert caught.value.hint


def test_a_sparse_entry_that_would_unpack_to_terabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.tar"
    info = _entry("a", size=0)
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "a",
                        "GNU.sparse.size": str(1 << 42), "GNU.sparse.map": "0,0"}  # fmt: skip
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    with pytest.raises(BundleError, match="unexpected entry"):
        _places(path)


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.tar"
    path.write_bytes(archive.pack(_ENTRIES)[:515])
    with pytest.raises(BundleError, match="truncated"):
        _places(path)
    with pytest.raises(BundleError, match="truncated"):
        archive.read(path, archive.Place(512, 6))


def test_more_bytes_than_allowed_are_refused(tmp_path: Path) -> None:
    archive.write(tmp_path / "m.tar", _ENTRIES)
    assert _places(tmp_path / "m.tar", 6)
    with pytest.raises(BundleError, match="more than 5 bytes"):
        _places(tmp_path / "m.tar", 5)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_an_extended_header_that_claims_terabytes_is_refused(kind: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.tar"
    with path.open("wb") as file:
        file.write(_entry("a", kind, 1 << 40).tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match="is not a box"):
        _places(path)


def test_headers_nested_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.tar"
    path.write_bytes((_entry("a", tarfile.GNUTYPE_LONGNAME, 1).tobuf() + b"a".ljust(512, b"\0")) * 5000)
    with pytest.raises(BundleError, match="is not a box"):
        _places(path)
