"""A download on disk that survives kill -9 and power cuts at the grain of a chunk.

``partial/<hex>`` has the size of the blob from the start; ``<hex>.have`` beside it says which chunks count: a header
(magic, size of the blob, size of a chunk) and a bitmap. Bits are only ever set, in place, and only after the bytes of
their chunks were synced: a bitmap that was half written when the power went names fewer chunks, never wrong ones.
"""

import logging
import os
import struct
import threading
from pathlib import Path
from typing import Final, Self

from edgert.errors import StoreError
from edgert.files import fsync_folder, write_durable
from edgert.store import Store
from edgert.wire.chunks import Bitmap
from edgert.wire.messages.blob import CHUNK_BYTES

__all__ = ["Partial"]

logger = logging.getLogger(__name__)

_SPARE_BYTES: Final = 1 << 20
_HEADER: Final = struct.Struct(">4sQI")
_MAGIC: Final = b"EHV1"
_sync = getattr(os, "fdatasync", os.fsync)


class Partial:
    """One download, blocking; `have` says which chunks are durable.

    A `save` that a cancelled fetch left behind in its thread ends before `close` does, or never begins.
    """

    def __init__(self, path: Path, files: tuple[int, int], have: Bitmap) -> None:
        self.have = have
        self._path = path
        self._data, self._bits = files
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, store: Store, digest: str, size_bytes: int) -> Self:
        """Go on with what is there, or start anew when it does not fit.

        Raises:
            StoreError: the disk has no room for the rest, or failed.
        """
        path = store.partial(digest)
        left_bytes = size_bytes - (path.stat().st_blocks * 512 if path.exists() else 0)
        if store.free_bytes() < left_bytes + _SPARE_BYTES:
            raise StoreError(f"{digest} needs {left_bytes} bytes more than the disk has", hint="make room on the disk")
        header = _HEADER.pack(_MAGIC, size_bytes, CHUNK_BYTES)
        have = _read_have(path, header, size_bytes)
        try:
            if have is None:
                have = Bitmap(-(-size_bytes // CHUNK_BYTES))
                path.unlink(missing_ok=True)
                write_durable(_bits_path(path), header + have.encode())
            data = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            os.ftruncate(data, size_bytes)
            bits = os.open(_bits_path(path), os.O_RDWR)
            fsync_folder(path.parent)
        except OSError as e:
            raise _failed(path, e) from e
        return cls(path, (data, bits), have)

    def save(self, pieces: list[tuple[int, bytes]]) -> None:
        """Make whole chunks durable: offset and bytes of each.

        Raises:
            StoreError: the disk is full or failed; none of them counts.
        """
        with self._lock:
            if self._closed:
                return
            try:
                for offset, data in pieces:
                    _write(self._data, data, offset)
                _sync(self._data)
                for offset, _ in pieces:
                    self.have.add(offset // CHUNK_BYTES)
                _write(self._bits, self.have.encode(), _HEADER.size)
                _sync(self._bits)
            except OSError as e:
                raise _failed(self._path, e) from e

    def close(self) -> None:
        """Let go of the files; what was saved stays."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._data)
                os.close(self._bits)


def _bits_path(path: Path) -> Path:
    return path.with_suffix(".have")


def _read_have(path: Path, header: bytes, size_bytes: int) -> Bitmap | None:
    try:
        raw = _bits_path(path).read_bytes()
        if path.stat().st_size == size_bytes and raw.startswith(header):
            return Bitmap(-(-size_bytes // CHUNK_BYTES), raw[len(header) :])
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        logger.warning("started the download of %s anew: %s", path.name, e)
        return None
    logger.warning("started the download of %s anew: what is here does not fit", path.name)
    return None


def _write(handle: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(handle, rest, offset)
        offset += written
        rest = rest[written:]


def _failed(path: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot write {path}: {error.strerror or error}", hint="check the disk and its permissions")
