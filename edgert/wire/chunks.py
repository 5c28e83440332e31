"""Blobs in ranges, decided without any I/O: what the receiver asks for next, what the sender answers.

The receiver keeps a bitmap of the chunks it has, asks for absolute ranges inside a window, and asks again for what did
not come in time: any loss, repetition or reordering ends in the exact bytes. Nothing is ever pushed.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgert.errors import TransferError
from edgert.store import Store
from edgert.values import DIGEST_PATTERN
from edgert.wire.messages.blob import CHUNK_BYTES, WINDOW_BYTES, Frame, Get, Status

__all__ = ["Bitmap", "Receiver", "Source", "StoreSource", "answer"]

_METADATA = re.compile(r"metadata/([A-Za-z0-9][A-Za-z0-9._-]{0,120}\.json)")
_DIGEST = re.compile(DIGEST_PATTERN)
_LONGEST_TIMEOUT_S = 30.0


class Bitmap:
    """Which of `count` chunks are here; one bit each, the first chunk in the lowest bit of the first byte."""

    def __init__(self, count: int, data: bytes = b"") -> None:
        size = (count + 7) // 8
        if data and len(data) != size:
            raise TransferError(f"a bitmap of {len(data)} bytes does not fit {count} chunks")
        self.count = count
        self._bits = bytearray(data or bytes(size))
        if count % 8:
            self._bits[-1] &= (1 << count % 8) - 1

    def __contains__(self, index: int) -> bool:
        return bool(self._bits[index >> 3] >> (index & 7) & 1)

    def add(self, index: int) -> None:
        """Mark a chunk as here."""
        if not 0 <= index < self.count:
            raise TransferError(f"there is no chunk {index} of {self.count}")
        self._bits[index >> 3] |= 1 << (index & 7)

    def missing(self) -> list[int]:
        """Indices of the chunks that are not here, in order."""
        return [index for index in range(self.count) if index not in self]

    @property
    def complete(self) -> bool:
        """Whether every chunk is here."""
        return self.held == self.count

    @property
    def held(self) -> int:
        """How many chunks are here."""
        return int.from_bytes(self._bits, "little").bit_count()

    def __bytes__(self) -> bytes:
        return bytes(self._bits)


@dataclass(slots=True)
class _Asked:
    at: float
    times: int = 1


class Receiver:
    """The receiver's half of one transfer.

    Args:
        name: of the blob.
        transfer: number that the frames bring back; frames of other transfers are ignored.
        size: of the blob in bytes; None when it is learned from the first frame.
        have: chunks that are here already.
        window_bytes: how much may be asked for and not yet here.
        timeout_s: after which a range is asked for again; doubles for a range that stays away.
        limit_bytes: refuse a blob that says it is larger.
    """

    def __init__(
        self,
        name: str,
        transfer: int,
        *,
        size: int | None = None,
        have: Bitmap | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        window_bytes: int = WINDOW_BYTES,
        timeout_s: float = 2.0,
        limit_bytes: int = 1 << 40,
    ) -> None:
        self.name = name
        self.transfer = transfer
        self.size = size
        self.status = Status.OK
        self._chunk_bytes = chunk_bytes
        self._window = max(1, window_bytes // chunk_bytes)
        self._timeout_s = timeout_s
        self._limit_bytes = limit_bytes
        self._asked: dict[int, _Asked] = {}
        self._busy_until = 0.0
        self.have = have if have is not None else Bitmap(1 if size is None else self._count(size))
        self._todo: list[int] = self.have.missing()[::-1]

    @property
    def finished(self) -> bool:
        """Whether every byte is here."""
        return self.size is not None and self.have.complete

    def requests(self, now: float) -> list[Get]:
        """What to ask for now: late ranges again, then new ones while the window has room.

        Args:
            now: monotonic seconds.
        """
        if self.status is Status.NOT_FOUND or self.finished or now < self._busy_until:
            return []
        late = [index for index, asked in self._asked.items() if now - asked.at >= self._patience(asked)]
        for index in late:
            self._asked[index] = _Asked(now, self._asked[index].times + 1)
        fresh = []
        while self._todo and len(self._asked) < (1 if self.size is None else self._window):
            index = self._todo.pop()
            self._asked[index] = _Asked(now)
            fresh.append(index)
        return [self._get(index) for index in late + fresh]

    def wake_at(self, now: float) -> float:
        """When `requests` should be called again if nothing arrives."""
        due = [asked.at + self._patience(asked) for asked in self._asked.values()]
        return max(min(due, default=now + self._timeout_s), self._busy_until)

    def receive(self, frame: Frame, now: float) -> tuple[int, bytes] | None:
        """Take a frame: offset and bytes to write, or None when it brings nothing new.

        Raises:
            TransferError: the sender contradicts itself or what is known of the blob.
        """
        if frame.transfer != self.transfer or self.finished:
            return None
        if frame.status is not Status.OK:
            self._refused(frame, now)
            return None
        self._learn_size(frame.total)
        index, rest = divmod(frame.offset, self._chunk_bytes)
        if rest or index >= self.have.count or len(frame.data) != self._length(index):
            raise TransferError(
                f"the sender of {self.name} sent {len(frame.data)} bytes at {frame.offset}, not asked for"
            )
        if index in self.have:
            return None
        self._asked.pop(index, None)
        if index in self._todo:
            self._todo.remove(index)
        self.have.add(index)
        return frame.offset, frame.data

    def _refused(self, frame: Frame, now: float) -> None:
        self.status = frame.status
        if frame.status is Status.BAD_RANGE:
            raise TransferError(f"the sender has {frame.total} bytes of {self.name}, other than expected")
        if frame.status is Status.BUSY:
            self.status = Status.OK
            self._busy_until = now + self._timeout_s

    def _learn_size(self, total: int) -> None:
        if self.size is None:
            if total > self._limit_bytes:
                raise TransferError(f"{self.name} has {total} bytes, more than the {self._limit_bytes} allowed")
            self.size = total
            self.have = Bitmap(self._count(total))
            self._todo = [index for index in self.have.missing() if index not in self._asked][::-1]
        elif total != self.size:
            raise TransferError(f"the sender has {total} bytes of {self.name}, expected {self.size}")

    def _patience(self, asked: _Asked) -> float:
        return float(min(self._timeout_s * 2 ** (asked.times - 1), _LONGEST_TIMEOUT_S))

    def _get(self, index: int) -> Get:
        length = self._chunk_bytes if self.size is None else self._length(index)
        return Get(transfer=self.transfer, name=self.name, offset=index * self._chunk_bytes, length=max(1, length))

    def _length(self, index: int) -> int:
        return min(self._chunk_bytes, (self.size or 0) - index * self._chunk_bytes)

    def _count(self, size: int) -> int:
        return max(1, -(-size // self._chunk_bytes))


class Source(Protocol):
    """What a sender may give away."""

    def size(self, name: str) -> int | None:
        """Size in bytes, or None when there is no such blob."""
        ...

    def read(self, name: str, offset: int, length: int) -> bytes:
        """The bytes of that range."""
        ...


class StoreSource:
    """Blobs of a store by digest, and TUF metadata by plain file name; no other file can be named.

    Args:
        store: where the blobs are.
        metadata: folder of ``metadata/<file>.json``; None gives none away.
    """

    def __init__(self, store: Store, metadata: Path | None = None) -> None:
        self._store = store
        self._metadata = metadata

    def size(self, name: str) -> int | None:
        path = self._path(name)
        try:
            return path.stat().st_size if path is not None and path.is_file() else None
        except OSError:
            return None

    def read(self, name: str, offset: int, length: int) -> bytes:
        path = self._path(name)
        if path is None:
            raise TransferError(f"{name[:100]!r} names no blob")
        try:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except OSError as e:
            raise TransferError(f"cannot read {name}: {e.strerror}") from e

    def _path(self, name: str) -> Path | None:
        if _DIGEST.fullmatch(name):
            return self._store.path(name)
        match = _METADATA.fullmatch(name)
        return self._metadata / match[1] if match and self._metadata is not None else None


def answer(get: Get, source: Source) -> Frame:
    """The frame that answers a request; says so when there is no such blob or range."""
    total = source.size(get.name)
    if total is None:
        return Frame(get.transfer, Status.NOT_FOUND, 0, 0, b"")
    if get.offset > total or (get.offset == total and total):
        return Frame(get.transfer, Status.BAD_RANGE, 0, total, b"")
    try:
        data = source.read(get.name, get.offset, min(get.length, total - get.offset))
    except TransferError:
        return Frame(get.transfer, Status.NOT_FOUND, 0, 0, b"")
    if get.offset + len(data) > total:
        return Frame(get.transfer, Status.BUSY, 0, 0, b"")
    return Frame(get.transfer, Status.OK, get.offset, total, data)
