"""Typed talk over one transport, and blobs fetched over it."""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Protocol

from edgert.clock import Clock
from edgert.errors import BundleError, LinkError, MessageError, TransferError
from edgert.store import Store
from edgert.wire.chunks import Bitmap, Receiver
from edgert.wire.messages.base import Message
from edgert.wire.messages.blob import CHUNK_BYTES, WINDOW_BYTES, Frame, Get
from edgert.wire.partial import Partial
from edgert.wire.transports.base import Subscription, Transport

__all__ = ["Fetcher", "Link", "Progress"]

logger = logging.getLogger(__name__)

_BATCH_BYTES: Final = WINDOW_BYTES // 2
_BATCH_S: Final = 1.0
_INBOX: Final = 4 * WINDOW_BYTES // CHUNK_BYTES

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
        if pull is None or not pull.offer(frame):
            logger.debug("ignored a frame of transfer %x", frame.transfer)

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
        partial = await asyncio.to_thread(Partial.open, store, digest, size_bytes)
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
            while True:
                now = self._clock.monotonic()
                if pull.absorb(sink, now):
                    heard_s = now
                if pull.commit():
                    saved_s = now
                pull.send(receiver.requests(now))
                full = sink.held_bytes >= _BATCH_BYTES or now - saved_s > _BATCH_S
                if sink.held_bytes and (full or receiver.finished or receiver.blocked):
                    pull.save(sink)
                elif receiver.finished and not pull.saving:
                    return
                left_s = heard_s + self._stall_s - now
                if deadline_s is not None:
                    left_s = min(left_s, start_s + deadline_s - now)
                if left_s <= 0:
                    raise _stalled(receiver.name, now - start_s, now - heard_s)
                await pull.wait(min(left_s, receiver.due(now), _BATCH_S))
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
        self._ask = ask
        self._asking: dict[int, asyncio.Task[None]] = {}
        self._saving: asyncio.Task[list[int]] | None = None
        self._inbox: deque[Frame] = deque()
        self._changed = asyncio.Event()

    def offer(self, frame: Frame) -> bool:
        if len(self._inbox) >= _INBOX:
            return False
        self._inbox.append(frame)
        self.wake()
        return True

    def wake(self) -> None:
        self._changed.set()

    def absorb(self, sink: "_Sink", now: float) -> bool:
        """Take in every frame that came; returns whether one brought something new."""
        self._changed.clear()
        news = False
        while self._inbox:
            piece = self.receiver.receive(self._inbox.popleft(), now)
            if piece is not None:
                news = True
                sink.take(*piece)
        return news

    @property
    def saving(self) -> bool:
        return self._saving is not None

    def save(self, sink: "_Sink") -> None:
        """Save what the sink holds, beside everything else; does nothing while an earlier save goes on."""
        if self._saving is None:
            self._saving = asyncio.create_task(sink.save())
            self._saving.add_done_callback(lambda _: self.wake())

    def commit(self) -> bool:
        """Move the window past what was saved; returns whether something was."""
        if self._saving is None or not self._saving.done():
            return False
        offsets = self._saving.result()
        self._saving = None
        for offset in offsets:
            self.receiver.commit(offset)
        return True

    async def wait(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    def send(self, gets: list[Get]) -> None:
        for offset, task in list(self._asking.items()):
            if task.done():
                del self._asking[offset]
                task.result()
        for get in gets:
            if get.offset not in self._asking:  # else the same request still waits for the connection
                self._asking[get.offset] = asyncio.create_task(self._send(get))

    async def close(self) -> None:
        tasks: list[asyncio.Task[Any]] = list(self._asking.values())
        if self._saving is not None:
            tasks.append(self._saving)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
    def __init__(self, partial: Partial, size_bytes: int, progress: Progress | None) -> None:
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


def _stalled(name: str, total_s: float, silent_s: float) -> TransferError:
    return TransferError(
        f"{name} did not arrive in {total_s:.0f} s, the last {silent_s:.0f} s brought nothing new",
        hint="is the sender running, and the broker reachable?",
    )
