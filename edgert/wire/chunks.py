"""The blob protocol without any input or output: what to ask for next, what to answer.

The receiver decides everything. It asks for whole chunks, at most one window ahead of what is safe; it asks again
for what was overtaken by three later chunks, and for everything when the line stays silent. The time it calls silence
grows with what the line shows, and the window shrinks after silence, so a slow line is not drowned in repetitions.
"""

import logging
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from edgert.errors import NotFoundError, TransferError
from edgert.store import Store
from edgert.values import DIGEST_PATTERN
from edgert.wire.messages.blob import CHUNK_BYTES, WINDOW_BYTES, Frame, Get, Status

__all__ = ["Bitmap", "MemorySource", "Receiver", "Source", "StoreSource", "answer", "busy"]

logger = logging.getLogger(__name__)

_OVERTAKEN: Final = 3
_BACKOFF_LIMIT: Final = 4
_FIRST_WINDOW: Final = 2
_DIGEST: Final = re.compile(DIGEST_PATTERN)
_METADATA: Final = re.compile(r"metadata/([A-Za-z0-9][A-Za-z0-9._-]{0,99}\.json)")


class Bitmap:
    """Which of `count` chunks are there.

    Args:
        count: how many chunks there are.
        data: one bit each, lowest bit first, as `encode` gives it; None means none is there.

    Raises:
        ValueError: `data` does not fit `count`.
    """

    def __init__(self, count: int, data: bytes | None = None) -> None:
        self.count = count
        self._bits = bytearray((count + 7) // 8 if data is None else data)
        if len(self._bits) != (count + 7) // 8 or (count % 8 and self._bits and self._bits[-1] >> count % 8):
            raise ValueError(f"{len(self._bits)} bytes are no bitmap of {count} chunks")
        self._there = int.from_bytes(self._bits, "little").bit_count()

    def __contains__(self, index: int) -> bool:
        return 0 <= index < self.count and bool(self._bits[index >> 3] >> (index & 7) & 1)

    def __len__(self) -> int:
        return self._there

    def add(self, index: int) -> bool:
        """Note that a chunk is there; False when it was before."""
        if not 0 <= index < self.count:
            raise ValueError(f"there is no chunk {index} of {self.count}")
        if index in self:
            return False
        self._bits[index >> 3] |= 1 << (index & 7)
        self._there += 1
        return True

    @property
    def full(self) -> bool:
        """Whether all are there."""
        return self._there == self.count

    def missing(self, start: int = 0) -> Iterator[int]:
        """The chunks that are not there, from `start` on."""
        return (index for index in range(start, self.count) if index not in self)

    def encode(self) -> bytes:
        """The bits as bytes."""
        return bytes(self._bits)


@dataclass(slots=True)
class _Asked:
    number: int
    at_s: float
    overtaken: int = 0


class Receiver:
    """The receiving half of one transfer.

    Args:
        name: what is fetched.
        transfer: our number for it.
        size: in bytes; None learns it from the first frame.
        have: chunks that are here already; only with a `size`.
        limit_bytes: a larger blob is refused; None takes any.
        chunk_bytes: size of a chunk; the last one may be shorter.
        window_bytes: asked for or received, but not yet `commit`-ted: never more than this (at least one chunk).
        timeout_s: the shortest silence after which everything asked for counts as lost.
    """

    def __init__(
        self,
        name: str,
        transfer: int,
        *,
        size: int | None = None,
        have: Bitmap | None = None,
        limit_bytes: int | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        window_bytes: int = WINDOW_BYTES,
        timeout_s: float = 2.0,
    ) -> None:
        self.name = name
        self.transfer = transfer
        self.size: int | None = None
        self.received = have or Bitmap(0)
        self._limit_bytes = limit_bytes
        self._chunk_bytes = chunk_bytes
        self._window_limit = max(1, window_bytes // chunk_bytes)
        self._window = min(_FIRST_WINDOW, self._window_limit)
        self._timeout_s = timeout_s
        self._asked: dict[int, _Asked] = {}
        self._again: set[int] = set()
        self._unsafe: set[int] = set()
        self._not_before_s = 0.0
        self._heard_s = 0.0
        self._slowest_s = 0.0
        self._silences = 0
        self._number = 0
        self._next = 0
        if size is not None:
            self._learn(size, have)

    @property
    def finished(self) -> bool:
        """Whether every chunk was received (committed or not)."""
        return self.size is not None and self.received.full

    @property
    def blocked(self) -> bool:
        """Whether nothing more is asked for before something is committed."""
        return not self._asked and bool(self._unsafe)

    def requests(self, now: float) -> list[Get]:
        """What to ask for now; call it after every `receive`, `commit` and `due`.

        Args:
            now: monotonic seconds.
        """
        self._expire(now)
        if self.finished or now < self._not_before_s:
            return []
        gets: list[Get] = []
        while (index := self._candidate()) is not None:
            self._again.discard(index)
            self._number += 1
            self._asked[index] = _Asked(self._number, now)
            offset = index * self._chunk_bytes
            gets.append(Get(transfer=self.transfer, name=self.name, offset=offset, length=self._length(index)))
        return gets

    def due(self, now: float) -> float:
        """Seconds until `requests` has something new to say if no frame comes before."""
        if now < self._not_before_s:
            return self._not_before_s - now
        last = max((asked.at_s for asked in self._asked.values()), default=now)
        return max(0.0, max(last, self._heard_s) + self._patience_s() - now)

    def receive(self, frame: Frame, now: float) -> tuple[int, bytes] | None:
        """Offset and bytes of a chunk that was still missing, or None when the frame brings nothing new.

        Raises:
            NotFoundError: the sender does not have the blob.
            TransferError: the sender has something else under that name, or breaks the protocol.
        """
        if frame.transfer != self.transfer:
            return None
        index, rest = divmod(frame.offset, self._chunk_bytes)
        if frame.status is Status.NOT_FOUND:
            raise NotFoundError(f"the sender does not have {self.name}")
        if frame.status is Status.BAD_RANGE:
            raise TransferError(f"the sender's {self.name} is not as long as ours: {frame.total} bytes")
        if frame.status is Status.BUSY:
            self._wait_for(index, now)
            return None
        if self.size is None:
            self._learn(frame.total, None)
        if frame.total != self.size:
            raise TransferError(f"{self.name} has {frame.total} bytes at the sender, not {self.size}")
        wanted = index in self._asked or index in self._again
        if rest or index >= self.received.count or index in self.received or not wanted:
            return None
        if len(frame.data) != self._length(index):
            raise TransferError(f"a chunk of {self.name} came with {len(frame.data)} bytes, not {self._length(index)}")
        self._take(index, now)
        return frame.offset, frame.data

    def commit(self, offset: int) -> None:
        """The chunk at `offset` is safe: the window moves on."""
        self._unsafe.discard(offset // self._chunk_bytes)

    def lose(self) -> None:
        """Everything asked for is lost, as after a new connection: ask again at once."""
        self._again |= self._asked.keys()
        self._asked.clear()
        self._not_before_s = 0.0

    def _learn(self, size: int, have: Bitmap | None) -> None:
        if self._limit_bytes is not None and size > self._limit_bytes:
            raise TransferError(f"{self.name} has {size} bytes, more than the {self._limit_bytes} allowed")
        count = -(-size // self._chunk_bytes)
        if have is not None and have.count != count:
            raise TransferError(f"the bitmap of {self.name} has {have.count} chunks, not {count}")
        self.size = size
        self.received = have or Bitmap(count)

    def _length(self, index: int) -> int:
        if self.size is None:
            return self._chunk_bytes
        return min(self._chunk_bytes, self.size - index * self._chunk_bytes)

    def _candidate(self) -> int | None:
        if len(self._asked) >= self._window or len(self._asked) + len(self._unsafe) >= self._window_limit:
            return None
        if self._again:
            return min(self._again)
        if self.size is None:
            return None if self._asked else 0
        for index in self.received.missing(self._next):
            if index not in self._asked:
                return index
        return None

    def _take(self, index: int, now: float) -> None:
        self.received.add(index)
        self._unsafe.add(index)
        self._again.discard(index)
        asked = self._asked.pop(index, None)
        if asked is not None:
            self._slowest_s = max(now - max(asked.at_s, self._heard_s), self._slowest_s * 0.9)
            for other, ask in list(self._asked.items()):
                ask.overtaken += ask.number < asked.number
                if ask.overtaken >= _OVERTAKEN:
                    del self._asked[other]
                    self._again.add(other)
        self._heard_s = now
        self._silences = 0
        self._window = min(self._window + 1, self._window_limit)
        while self._next in self.received:
            self._next += 1

    def _wait_for(self, index: int, now: float) -> None:
        if self._asked.pop(index, None) is not None:
            self._again.add(index)
            self._not_before_s = now + self._patience_s() / 4
            self._silences = min(self._silences + 1, _BACKOFF_LIMIT)
            self._heard_s = now

    def _expire(self, now: float) -> None:
        if self._asked and self.due(now) <= 0:
            self.lose()
            self._silences = min(self._silences + 1, _BACKOFF_LIMIT)
            self._window = max(1, self._window // 2)

    def _patience_s(self) -> float:
        return max(self._timeout_s, 3 * self._slowest_s) * 2.0 ** min(self._silences, _BACKOFF_LIMIT)


class Source(Protocol):
    """What a sender may send, by name."""

    def size(self, name: str) -> int | None:
        """Bytes of that blob, or None when there is none of that name."""
        ...

    def read(self, name: str, offset: int, length: int) -> bytes:
        """A range of a blob; fewer bytes when it is gone or cannot be read."""
        ...


def answer(get: Get, source: Source) -> Frame:
    """The frame that answers one request: the range, or why there is none."""
    total = source.size(get.name)
    if total is None:
        return Frame(get.transfer, Status.NOT_FOUND, 0, 0, b"")
    if get.offset > total or (get.offset == total and total > 0):
        return Frame(get.transfer, Status.BAD_RANGE, 0, total, b"")
    wanted = min(get.length, total - get.offset)
    data = source.read(get.name, get.offset, wanted)
    if len(data) != wanted:  # it was replaced between the two looks
        return busy(get)
    return Frame(get.transfer, Status.OK, get.offset, total, data)


def busy(get: Get) -> Frame:
    """The frame that says: ask for this range again a little later."""
    return Frame(get.transfer, Status.BUSY, get.offset, get.offset, b"")


class StoreSource:
    """Blobs of a store as ``sha256:<hex>``, and files of one folder as ``metadata/<file>.json``; nothing else.

    No path can be named: links, folders and names with separators are not found.

    Args:
        metadata: folder with TUF metadata; None serves none.
    """

    def __init__(self, store: Store, metadata: Path | None = None) -> None:
        self._store = store
        self._metadata = metadata

    def size(self, name: str) -> int | None:
        path = self._path(name)
        try:
            found = None if path is None else path.lstat()
        except OSError:
            return None
        return found.st_size if found is not None and stat.S_ISREG(found.st_mode) else None

    def read(self, name: str, offset: int, length: int) -> bytes:
        path = self._path(name)
        try:
            if path is not None:
                with path.open("rb") as file:
                    file.seek(offset)
                    return file.read(length)
        except OSError as e:
            logger.warning("cannot read %s: %s", name, e.strerror or e)
        return b""

    def _path(self, name: str) -> Path | None:
        if _DIGEST.fullmatch(name):
            return self._store.path(name)
        found = _METADATA.fullmatch(name)
        if found is None or self._metadata is None:
            return None
        return self._metadata / found.group(1)


class MemorySource:
    """Blobs at hand, by name; the mapping may change while it is served."""

    def __init__(self, blobs: Mapping[str, bytes]) -> None:
        self._blobs = blobs

    def size(self, name: str) -> int | None:
        blob = self._blobs.get(name)
        return None if blob is None else len(blob)

    def read(self, name: str, offset: int, length: int) -> bytes:
        return self._blobs.get(name, b"")[offset : offset + length]
