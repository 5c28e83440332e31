"""Typed talk over one transport, and the receiver's shell of the blob protocol."""

import asyncio
import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from edgert.clock import Clock
from edgert.errors import MessageError, NotFoundError, StoreError, TransferError
from edgert.files import write_durable
from edgert.store import Store
from edgert.wire.chunks import Bitmap, Receiver
from edgert.wire.messages.base import Message
from edgert.wire.messages.blob import CHUNK_BYTES, WINDOW_BYTES, Frame, Get, Status
from edgert.wire.transports.base import Subscription, Transport

__all__ = ["Fetcher", "Link", "Progress"]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the bytes that are here and the size of the blob."""

_CHUNKS_PER_FSYNC: Final = WINDOW_BYTES // CHUNK_BYTES


class Link:
    """Messages over a transport.

    Args:
        transport: connected by its owner.
        clock: for every deadline.
    """

    def __init__(self, transport: Transport, clock: Clock) -> None:
        self.transport = transport
        self.clock = clock

    async def send(self, topic: str, message: Message, *, retain: bool = False) -> None:
        """Send a message, acknowledged by the broker."""
        await self.transport.publish(topic, message.encode(), retain=retain, qos=1)

    async def send_raw(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1) -> None:
        """Send bytes: an envelope, or a frame (QoS 0)."""
        await self.transport.publish(topic, payload, retain=retain, qos=qos)

    async def listen(self, pattern: str, *, qos: int = 1) -> Subscription:
        """Messages that match, from now on."""
        return await self.transport.subscribe(pattern, qos=qos)


class Fetcher:
    """Fetches blobs: asks for ranges with `ask`, is handed the frames by `deliver`; many transfers at once.

    Args:
        ask: sends a request to whoever has the blob.
        timeout_s: after which a range is asked for again.
        stall_s: a transfer without any new byte for so long fails.
    """

    def __init__(
        self, ask: Callable[[Get], Awaitable[None]], clock: Clock, *, timeout_s: float = 2.0, stall_s: float = 30.0
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._timeout_s = timeout_s
        self._stall_s = stall_s
        self._inboxes: dict[int, asyncio.Queue[Frame]] = {}

    def deliver(self, payload: bytes) -> None:
        """Hand in one frame; what is not a frame of a running transfer is ignored."""
        try:
            frame = Frame.decode(payload)
        except MessageError as e:
            logger.debug("ignored a frame: %s", e)
            return
        inbox = self._inboxes.get(frame.transfer)
        if inbox is not None and inbox.qsize() < 4 * _CHUNKS_PER_FSYNC:
            inbox.put_nowait(frame)

    async def fetch_bytes(self, name: str, *, limit_bytes: int, deadline_s: float = 30.0) -> bytes:
        """A small blob, held in memory.

        Raises:
            NotFoundError: the sender does not have it.
            TransferError: too large, or it did not come in time.
        """
        pieces: dict[int, bytes] = {}
        receiver = Receiver(name, _number(), timeout_s=self._timeout_s, limit_bytes=limit_bytes)

        async def keep(offset: int, data: bytes) -> None:
            pieces[offset] = data

        await self._receive(receiver, keep, deadline_s)
        return b"".join(pieces[offset] for offset in sorted(pieces))

    async def fetch_blob(
        self,
        store: Store,
        digest: str,
        size_bytes: int,
        *,
        progress: Progress | None = None,
        deadline_s: float | None = None,
    ) -> None:
        """A blob into the store, going on where an earlier attempt, or an earlier process, stopped.

        Raises:
            NotFoundError: the sender does not have it.
            BundleError: the bytes do not have that digest; they are thrown away.
            TransferError: it stalled, or did not come in time.
            StoreError: the disk is full or read-only.
        """
        if store.has(digest):
            return
        partial = await asyncio.to_thread(_Partial, store.partial(digest), size_bytes)
        receiver = Receiver(digest, _number(), size=size_bytes, have=partial.bitmap(), timeout_s=self._timeout_s)

        async def keep(offset: int, data: bytes) -> None:
            partial.write(offset, data)
            if partial.due:
                await asyncio.to_thread(partial.flush)
            if progress is not None:
                progress(min(receiver.have.held * CHUNK_BYTES, size_bytes), size_bytes)

        try:
            await self._receive(receiver, keep, deadline_s)
        finally:
            await asyncio.to_thread(partial.close)
        await asyncio.to_thread(store.adopt, digest)

    async def _receive(
        self, receiver: Receiver, keep: Callable[[int, bytes], Awaitable[None]], deadline_s: float | None
    ) -> None:
        inbox = self._inboxes[receiver.transfer] = asyncio.Queue()
        started = progressed = self._clock.monotonic()
        try:
            while not receiver.finished:
                now = self._clock.monotonic()
                if now - progressed > self._stall_s or (deadline_s is not None and now - started > deadline_s):
                    raise TransferError(
                        f"{receiver.name} did not arrive: nothing new for {now - progressed:.0f} s",
                        hint="is the other side connected to the broker?",
                    )
                for get in receiver.requests(now):
                    await self._ask(get)
                frame = await _next(inbox, max(0.01, receiver.wake_at(now) - now))
                if frame is None:
                    continue
                piece = receiver.receive(frame, self._clock.monotonic())
                if receiver.status is Status.NOT_FOUND:
                    raise NotFoundError(f"the sender does not have {receiver.name}")
                if piece is not None:
                    progressed = self._clock.monotonic()
                    await keep(*piece)
        finally:
            del self._inboxes[receiver.transfer]


async def _next(inbox: asyncio.Queue[Frame], timeout_s: float) -> Frame | None:
    try:
        async with asyncio.timeout(timeout_s):
            return await inbox.get()
    except TimeoutError:
        return None


def _number() -> int:
    return secrets.randbits(63)


class _Partial:
    """A download on disk. A chunk counts only when its bytes are durable: data first, then the bitmap."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._have_path = path.with_suffix(".have")
        count = max(1, -(-size_bytes // CHUNK_BYTES))
        self._durable = self._load(count, size_bytes)
        self._new: list[int] = []
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            os.ftruncate(self._file, size_bytes)
        except OSError as e:
            raise _full(path, e) from e

    @property
    def due(self) -> bool:
        """Whether enough chunks are waiting for a flush."""
        return len(self._new) >= _CHUNKS_PER_FSYNC

    def bitmap(self) -> Bitmap:
        """A copy of what is durable."""
        return Bitmap(self._durable.count, bytes(self._durable))

    def write(self, offset: int, data: bytes) -> None:
        try:
            os.pwrite(self._file, data, offset)
        except OSError as e:
            raise _full(self._path, e) from e
        self._new.append(offset // CHUNK_BYTES)

    def flush(self) -> None:
        """Make what was written count."""
        if not self._new:
            return
        try:
            os.fsync(self._file)
        except OSError as e:
            raise _full(self._path, e) from e
        for index in self._new:
            self._durable.add(index)
        self._new.clear()
        write_durable(self._have_path, bytes(self._durable))

    def close(self) -> None:
        try:
            self.flush()
        finally:
            os.close(self._file)

    def _load(self, count: int, size_bytes: int) -> Bitmap:
        try:
            if self._path.stat().st_size == size_bytes:
                return Bitmap(count, self._have_path.read_bytes())
        except (FileNotFoundError, TransferError):
            pass
        except OSError as e:
            raise _full(self._path, e) from e
        return Bitmap(count)


def _full(path: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot write {path}: {error.strerror}", hint="check the disk and its permissions")
