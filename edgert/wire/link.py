"""Typed talk over one transport, and blobs fetched over it."""

import asyncio
import logging
import os
import secrets
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol, Self

from edgert.clock import Clock
from edgert.errors import BundleError, LinkError, MessageError, StoreError, TransferError
from edgert.files import write_durable
from edgert.store import Store
from edgert.wire.chunks import Bitmap, Receiver
from edgert.wire.messages.base import Message
from edgert.wire.messages.blob import CHUNK_BYTES, WINDOW_BYTES, Frame, Get
from edgert.wire.transports.base import Subscription, Transport

__all__ = ["Fetcher", "Link", "Progress"]

logger = logging.getLogger(__name__)

_BATCH_BYTES: Final = WINDOW_BYTES // 2
_BATCH_S: Final = 1.0
_INBOX: Final = 4 * WINDOW_BYTES // CHUNK_BYTES
_SPARE_BYTES: Final = 1 << 20
_HAVE_HEADER: Final = struct.Struct(">4sQI")
_HAVE_MAGIC: Final = b"EHV1"

Progress = Callable[[int, int], None]
"""Called with the bytes that are durable and the size of the blob."""


class Link:
    """Messages instead of bytes.

    Args:
        transport: connected, or to be connected by its owner.
        clock: for deadlines of transfers.
    """

    def __init__(self, transport: Transport, clock: Clock) -> None:
        self.transport = transport
        self.clock = clock

    async def send(self, topic: str, message: Message, *, retain: bool = False) -> None:
        """Send a message at QoS 1 and wait for the broker's acknowledgement.

        Raises:
            LinkError: the broker did not take it.
        """
        await self.transport.publish(topic, message.encode(), retain=retain, qos=1)

    async def send_raw(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1) -> None:
        """Send bytes: envelopes, and with QoS 0 the frames of blobs.

        Raises:
            LinkError: the broker did not take them.
        """
        await self.transport.publish(topic, payload, retain=retain, qos=qos)

    async def listen(self, pattern: str, *, qos: int = 1) -> Subscription:
        """What arrives on `pattern`; ready when this returns.

        Raises:
            LinkError: the broker did not take the subscription.
        """
        return await self.transport.subscribe(pattern, qos=qos)

    def fetcher(self, topic: str, *, timeout_s: float = 2.0, stall_s: float = 30.0) -> "Fetcher":
        """A fetcher that asks on `topic`; its owner hands it the frames that answer."""

        async def ask(get: Get) -> None:
            await self.send(topic, get)

        return Fetcher(ask, self.clock, timeout_s=timeout_s, stall_s=stall_s)


class Fetcher:
    """The receiver's shell: any number of fetches from one sender over one stream of frames.

    Args:
        ask: sends a request; a `LinkError` of it counts as a lost request.
        timeout_s: the shortest silence after which ranges are asked for again.
        stall_s: a fetch that gets nothing new for so long fails.
    """

    def __init__(
        self,
        ask: Callable[[Get], Awaitable[None]],
        clock: Clock,
        *,
        timeout_s: float = 2.0,
        stall_s: float = 30.0,
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._timeout_s = timeout_s
        self._stall_s = stall_s
        self._pulls: dict[int, _Pull] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def deliver(self, payload: bytes) -> None:
        """Take one frame from the sender; what no fetch waits for is ignored."""
        try:
            frame = Frame.decode(payload)
        except MessageError as e:
            logger.debug("ignored a frame: %s", e)
            return
        pull = self._pulls.get(frame.transfer)
        if pull is None or pull.inbox.full():
            logger.debug("ignored a frame of transfer %x", frame.transfer)
        else:
            pull.inbox.put_nowait(frame)

    def lose(self) -> None:
        """Say that the connection was made anew: whatever was asked for is asked for again at once."""
        for pull in self._pulls.values():
            pull.receiver.lose()
            pull.wake()

    async def fetch_bytes(self, name: str, *, limit_bytes: int, deadline_s: float = 30.0) -> bytes:
        """A small blob, in memory; its content is not checked.

        Args:
            limit_bytes: a larger one is refused.

        Raises:
            NotFoundError: the sender does not have it.
            TransferError: too large, too late, or stalled.
        """
        receiver = self._receiver(name, size=None, have=None, limit_bytes=limit_bytes)
        sink = _Memory()
        await self._pull(receiver, sink, deadline_s)
        return b"".join(sink.pieces[offset] for offset in sorted(sink.pieces))

    async def fetch_blob(
        self,
        store: Store,
        digest: str,
        size_bytes: int,
        *,
        progress: Progress | None = None,
        deadline_s: float | None = None,
    ) -> None:
        """Bring a blob into the store; goes on where an earlier attempt, even of a killed process, ended.

        Args:
            size_bytes: as signed metadata says.
            progress: told after every durable step.

        Raises:
            NotFoundError: the sender does not have it.
            TransferError: too late, or stalled.
            BundleError: the bytes do not have that digest; they are thrown away. What was left of an earlier attempt
                may be to blame: it is fetched once more from the start before this is said.
            StoreError: the disk is full or failed.
        """
        async with self._locks.setdefault(digest, asyncio.Lock()):
            again = not store.has(digest)
            while again:
                again = await self._fetch_into(store, digest, size_bytes, progress, deadline_s)
        if progress is not None:
            progress(size_bytes, size_bytes)

    async def _fetch_into(
        self, store: Store, digest: str, size_bytes: int, progress: Progress | None, deadline_s: float | None
    ) -> bool:
        """Fetch what is missing; returns whether the whole has to be fetched again."""
        partial = await asyncio.to_thread(_Partial.open, store, digest, size_bytes)
        try:
            have = Bitmap(partial.have.count, partial.have.encode())
            resumed = len(have) > 0
            if resumed:
                logger.info("went on with %s: %d of %d chunks are here", digest, len(have), have.count)
            sink = _Disk(partial, size_bytes, progress)
            await self._pull(self._receiver(digest, size=size_bytes, have=have, limit_bytes=None), sink, deadline_s)
        finally:
            partial.close()
        try:
            await asyncio.to_thread(store.adopt, digest)
        except BundleError:
            if not resumed:
                raise
            logger.warning("threw away %s: what was left of an earlier attempt is damaged", digest)
            return True
        return False

    def _receiver(self, name: str, *, size: int | None, have: Bitmap | None, limit_bytes: int | None) -> Receiver:
        transfer = secrets.randbits(63)
        return Receiver(name, transfer, size=size, have=have, limit_bytes=limit_bytes, timeout_s=self._timeout_s)

    async def _pull(self, receiver: Receiver, sink: "_Sink", deadline_s: float | None) -> None:
        pull = self._pulls[receiver.transfer] = _Pull(receiver, self._ask)
        start_s = heard_s = saved_s = self._clock.monotonic()
        try:
            while not receiver.finished:
                now = self._clock.monotonic()
                pull.send(receiver.requests(now))
                left_s = heard_s + self._stall_s - now
                if deadline_s is not None:
                    left_s = min(left_s, start_s + deadline_s - now)
                if left_s <= 0:
                    raise _stalled(receiver.name, now - start_s, now - heard_s)
                frame = await pull.next_frame(min(left_s, receiver.due(now)))
                now = self._clock.monotonic()
                piece = None if frame is None else receiver.receive(frame, now)
                if piece is not None:
                    heard_s = now
                    sink.take(*piece)
                if sink.held_bytes and (
                    sink.held_bytes >= _BATCH_BYTES or receiver.finished or receiver.blocked or now - saved_s > _BATCH_S
                ):
                    for offset in await sink.save():
                        receiver.commit(offset)
                    saved_s = now
        except TransferError:
            await sink.save()  # the next attempt goes on from here
            raise
        finally:
            del self._pulls[receiver.transfer]
            await pull.close()


class _Pull:
    """One fetch: the frames that came for it and the requests on their way."""

    def __init__(self, receiver: Receiver, ask: Callable[[Get], Awaitable[None]]) -> None:
        self.receiver = receiver
        self.inbox: asyncio.Queue[Frame | None] = asyncio.Queue(_INBOX)
        self._ask = ask
        self._asking: dict[int, asyncio.Task[None]] = {}

    def wake(self) -> None:
        if self.inbox.empty():
            self.inbox.put_nowait(None)

    def send(self, gets: list[Get]) -> None:
        for offset, task in list(self._asking.items()):
            if task.done():
                del self._asking[offset]
                task.result()
        for get in gets:
            if get.offset not in self._asking:  # else the same request still waits for the connection
                self._asking[get.offset] = asyncio.create_task(self._send(get))

    async def next_frame(self, timeout_s: float) -> Frame | None:
        try:
            async with asyncio.timeout(timeout_s):
                return await self.inbox.get()
        except TimeoutError:
            return None

    async def close(self) -> None:
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    async def _send(self, get: Get) -> None:
        try:
            await self._ask(get)
        except LinkError as e:
            logger.debug("lost a request for %s: %s", get.name, e)


class _Sink(Protocol):
    held_bytes: int

    def take(self, offset: int, data: bytes) -> None: ...

    async def save(self) -> list[int]: ...


class _Memory:
    def __init__(self) -> None:
        self.pieces: dict[int, bytes] = {}
        self.held_bytes = 0
        self._new: list[int] = []

    def take(self, offset: int, data: bytes) -> None:
        self.pieces[offset] = data
        self.held_bytes += len(data)
        self._new.append(offset)

    async def save(self) -> list[int]:
        new, self._new = self._new, []
        self.held_bytes = 0
        return new


class _Disk:
    def __init__(self, partial: "_Partial", size_bytes: int, progress: Progress | None) -> None:
        self.held_bytes = 0
        self._partial = partial
        self._size_bytes = size_bytes
        self._progress = progress
        self._held: list[tuple[int, bytes]] = []
        self._tell()

    def take(self, offset: int, data: bytes) -> None:
        self._held.append((offset, data))
        self.held_bytes += len(data)

    async def save(self) -> list[int]:
        held, self._held, self.held_bytes = self._held, [], 0
        await asyncio.to_thread(self._partial.save, held)
        self._tell()
        return [offset for offset, _ in held]

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(min(len(self._partial.have) * CHUNK_BYTES, self._size_bytes), self._size_bytes)


class _Partial:
    """A download on disk: the bitmap beside it names only chunks whose bytes were fsynced before."""

    def __init__(self, path: Path, handle: int, size_bytes: int, have: Bitmap) -> None:
        self.have = have
        self._path = path
        self._handle = handle
        self._size_bytes = size_bytes

    @classmethod
    def open(cls, store: Store, digest: str, size_bytes: int) -> Self:
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


def _stalled(name: str, total_s: float, silent_s: float) -> TransferError:
    return TransferError(
        f"{name} did not arrive in {total_s:.0f} s, the last {silent_s:.0f} s brought nothing new",
        hint="is the sender running, and the broker reachable?",
    )


def _failed(path: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot write {path}: {error.strerror or error}", hint="check the disk and its permissions")
