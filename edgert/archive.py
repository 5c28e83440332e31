"""Tar files that travel: written the same way every time, and read as places of known entries, never extracted.

A tar from outside may name paths outside the folder, links, devices, sparse files that unpack to terabytes, or the same
entry twice. None of that is ever followed: an entry has a name that the caller allows, is a plain run of bytes inside
the file, and comes once.
"""

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from edgert.errors import BundleError

__all__ = ["Place", "pack", "pieces", "places", "read", "write"]

_ENTRY_LIMIT = 10_000
_HEADER_LIMIT_BYTES = 1 << 20
_PIECE_BYTES = 1 << 20


class Place(NamedTuple):
    """Where the bytes of an entry are in the file."""

    offset: int
    size: int


def write(path: Path, entries: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar of `entries`, in their order; the same entries give the same bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        _fill(tar, entries)


def pack(entries: Iterable[tuple[str, bytes]]) -> bytes:
    """The bytes that `write` writes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        _fill(tar, entries)
    return buffer.getvalue()


def places(
    path: Path, allowed: Callable[[str], bool], *, noun: str, hint: str, limit_bytes: int | None = None
) -> dict[str, Place]:
    """Where each entry of a tar is, by name.

    Args:
        allowed: whether an entry may have that name.
        noun: what the file should be, for errors ("a source").
        hint: what to do when it is something else.
        limit_bytes: of all entries together.

    Raises:
        BundleError: there is no such file, it is no tar, it is cut off, or it holds anything but allowed entries.
    """
    found: dict[str, Place] = {}
    try:
        length = path.stat().st_size
        with _Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                plain = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not info.issparse()
                if not plain or not allowed(info.name) or info.name in found or len(found) >= _ENTRY_LIMIT:
                    raise BundleError(f"{path} is not {noun}: unexpected entry {info.name[:80]!r}", hint=hint)
                found[info.name] = Place(info.offset_data, info.size)
                if info.offset_data + info.size > length:
                    raise BundleError(f"{path} is truncated", hint="copy it again")
    except FileNotFoundError as e:
        raise BundleError(f"there is no file {path}", hint="check the path") from e
    except (OSError, tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError) as e:
        raise BundleError(f"{path} is not {noun}: {e}", hint=hint) from e
    if limit_bytes is not None and sum(place.size for place in found.values()) > limit_bytes:
        raise BundleError(f"{path} is not {noun}: it holds more than {limit_bytes} bytes", hint=hint)
    return found


def read(path: Path, place: Place) -> bytes:
    """The bytes at a place.

    Raises:
        BundleError: the file is gone or has become shorter, or memory does not suffice.
    """
    try:
        return b"".join(pieces(path, place))
    except MemoryError as e:
        raise BundleError(
            f"{path}: an entry of {place.size} bytes does not fit into memory", hint="use a machine with more"
        ) from e


def pieces(path: Path, place: Place) -> Iterator[bytes]:
    """The bytes at a place, one piece after the other.

    Raises:
        BundleError: the file is gone or has become shorter.
    """
    left = place.size
    try:
        with path.open("rb") as file:
            file.seek(place.offset)
            while left and (piece := file.read(min(left, _PIECE_BYTES))):
                left -= len(piece)
                yield piece
    except (OSError, OverflowError) as e:
        raise BundleError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}", hint="check the file") from e
    if left:
        raise BundleError(f"{path} is truncated", hint="copy it again")


class _Headers(io.FileIO):
    """A tar from which only headers are read: an extended header may claim any size, and tarfile would hold it."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _HEADER_LIMIT_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return super().read(size) or b""


def _fill(tar: tarfile.TarFile, entries: Iterable[tuple[str, bytes]]) -> None:
    for name, data in entries:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644
        tar.addfile(info, io.BytesIO(data))
