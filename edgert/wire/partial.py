"""A download on disk that survives kill -9 and power cuts at the grain of a chunk.

``partial/<hex>`` has the size of the blob from the start; ``<hex>.have`` beside it says which chunks count: a header
(magic, size of the blob, size of a chunk) and a bitmap. Bytes are fsynced first, the bitmap is replaced after that.
"""

import logging
import os
import struct
import threading
from pathlib import Path
from typing import Final, Self

from edgert.errors import StoreError
from edgert.files import write_durable
from edgert.store import Store
from edgert.wire.chunks import Bitmap
from edgert.wire.messages.blob import CHUNK_BYTES

__all__ = ["Partial"]

logger = logging.getLogger(__name__)

_SPARE_BYTES: Final = 1 << 20
_HAVE_HEADER: Final = struct.Struct(">4sQI")
_HAVE_MAGIC: Final = b"EHV1"


class Partial:
    """One download, blocking; `have` says which chunks are durable.

    A `save` that a cancelled fetch left behind in its thread ends before `close` does, or never begins.
    """

    def __init__(self, path: Path, handle: int, size_bytes: int, have: Bitmap) -> None:
        self.have = have
        self._path = path
        self._handle = handle
        self._size_bytes = size_bytes
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
        have = _read_have(path, size_bytes)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            os.ftruncate(handle, size_bytes)
        except OSError as e:
            raise _failed(path, e) from e
        return cls(path, handle, size_bytes, have)

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
                    rest = memoryview(data)
                    while rest:
                        written = os.pwrite(self._handle, rest, offset + len(data) - len(rest))
                        rest = rest[written:]
                os.fsync(self._handle)
            except OSError as e:
                raise _failed(self._path, e) from e
            for offset, _ in pieces:
                self.have.add(offset // CHUNK_BYTES)
            header = _HAVE_HEADER.pack(_HAVE_MAGIC, self._size_bytes, CHUNK_BYTES)
            write_durable(self._path.with_suffix(".have"), header + self.have.encode())

    def close(self) -> None:
        """Let go of the file; what was saved stays."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._handle)


def _read_have(path: Path, size_bytes: int) -> Bitmap:
    count = -(-size_bytes // CHUNK_BYTES)
    try:
        raw = path.with_suffix(".have").read_bytes()
        if path.stat().st_size == size_bytes and raw[: _HAVE_HEADER.size] == _HAVE_HEADER.pack(
            _HAVE_MAGIC, size_bytes, CHUNK_BYTES
        ):
            return Bitmap(count, raw[_HAVE_HEADER.size :])
    except FileNotFoundError:
        return Bitmap(count)
    except (OSError, ValueError) as e:
        logger.warning("started the download of %s anew: %s", path.name, e)
        return Bitmap(count)
    logger.warning("started the download of %s anew: what is here does not fit", path.name)
    return Bitmap(count)


def _failed(path: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot write {path}: {error.strerror or error}", hint="check the disk and its permissions")
