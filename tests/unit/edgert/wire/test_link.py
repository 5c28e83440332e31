"""Fetching over the loopback: lossy ways, dead senders, damaged leftovers and full disks."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from edgert.clock import SystemClock
from edgert.errors import BundleError, LinkError, NotFoundError, StoreError, TransferError
from edgert.store import Store
from edgert.values import digest
from edgert.wire.chunks import MemorySource, answer
from edgert.wire.link import Fetcher, Link
from edgert.wire.messages.blob import CHUNK_BYTES, Done, Get
from edgert.wire.transports.base import Broker
from edgert.wire.transports.loopback import LoopbackBroker, LoopbackTransport
from tests.support.loop import run

_BLOB = bytes(range(256)) * (5 * CHUNK_BYTES // 256) + b"tail"
_NAME = digest(_BLOB)


class _Sender:
    """Answers at once, or as `twist` changes the frame (None loses it)."""

    def __init__(self, blobs: dict[str, bytes], twist: Callable[[int, bytes], bytes | None] | None = None) -> None:
        self.asked: list[Get] = []
        self._source = MemorySource(blobs)
        self._twist = twist
        self.fetcher = Fetcher(self._ask, SystemClock(), timeout_s=0.02, stall_s=0.5)

    async def _ask(self, get: Get) -> None:
        self.asked.append(get)
        frame: bytes | None = answer(get, self._source).encode()
        if self._twist is not None and frame is not None:
            frame = self._twist(len(self.asked), frame)
        if frame is not None:
            asyncio.get_running_loop().call_soon(self.fetcher.deliver, frame)


def test_messages_and_blobs_travel_over_a_link() -> None:
    async def main() -> None:
        broker = LoopbackBroker()
        one = LoopbackTransport(Broker("here", 1, "one"), broker)
        two = LoopbackTransport(Broker("here", 1, "two"), broker)
        await one.connect()
        await two.connect()
        device, server = Link(one, SystemClock()), Link(two, SystemClock())
        gets = await server.listen("get")
        frames = await device.listen("data", qos=0)
        fetcher = device.fetcher("get", timeout_s=0.05)

        async def serve() -> None:
            async for delivery in gets:
                frame = answer(Get.decode(delivery.payload), MemorySource({"metadata/a.json": b"content"}))
                await server.send_raw("data", frame.encode(), qos=0)

        async def take() -> None:
            async for delivery in frames:
                fetcher.deliver(delivery.payload)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve())
            tasks.create_task(take())
            assert await fetcher.fetch_bytes("metadata/a.json", limit_bytes=100) == b"content"
            with pytest.raises(NotFoundError):
                await fetcher.fetch_bytes("metadata/b.json", limit_bytes=100)
            inbox = await device.listen("done")
            await server.send("done", Done(name="x"), retain=True)
            assert Done.decode((await anext(inbox)).payload) == Done(name="x")
            await one.close()
            await two.close()

    run(main())


def test_a_blob_comes_into_the_store_with_progress(tmp_path: Path) -> None:
    store = Store(tmp_path)
    steps: list[tuple[int, int]] = []
    sender = _Sender({_NAME: _BLOB})
    run(sender.fetcher.fetch_blob(store, _NAME, len(_BLOB), progress=lambda *step: steps.append(step)))
    assert store.read(_NAME) == _BLOB
    assert steps[0] == (0, len(_BLOB))
    assert steps[-1] == (len(_BLOB), len(_BLOB))
    assert steps == sorted(steps)
    assert list((tmp_path / "partial").iterdir()) == []
    asked = len(sender.asked)
    run(sender.fetcher.fetch_blob(store, _NAME, len(_BLOB)))
    assert len(sender.asked) == asked, "what is here is not fetched"


def test_a_lossy_repeating_way_ends_in_the_right_bytes(tmp_path: Path) -> None:
    def twist(count: int, frame: bytes) -> bytes | None:
        return None if count % 3 == 1 else frame

    sender = _Sender({_NAME: _BLOB}, twist)
    run(sender.fetcher.fetch_blob(Store(tmp_path), _NAME, len(_BLOB)))
    assert Store(tmp_path).read(_NAME) == _BLOB


def test_two_fetches_share_one_stream_and_the_same_blob_is_fetched_once(tmp_path: Path) -> None:
    other = _BLOB[::-1]
    sender = _Sender({_NAME: _BLOB, digest(other): other})
    store = Store(tmp_path)

    async def main() -> None:
        fetch = sender.fetcher.fetch_blob
        await asyncio.gather(
            fetch(store, _NAME, len(_BLOB)),
            fetch(store, digest(other), len(other)),
            fetch(store, _NAME, len(_BLOB)),
        )

    run(main())
    assert store.read(_NAME) == _BLOB
    assert store.read(digest(other)) == other
    assert len(sender.asked) == len({(get.name, get.offset) for get in sender.asked})


def test_a_stopped_download_goes_on_where_it_was(tmp_path: Path) -> None:
    def twist(count: int, frame: bytes) -> bytes | None:
        return frame if count <= 3 else None

    store = Store(tmp_path)
    with pytest.raises(TransferError, match="nothing new"):
        run(_Sender({_NAME: _BLOB}, twist).fetcher.fetch_blob(store, _NAME, len(_BLOB)))
    sender = _Sender({_NAME: _BLOB})
    run(sender.fetcher.fetch_blob(store, _NAME, len(_BLOB)))
    assert store.read(_NAME) == _BLOB
    assert len(sender.asked) == 6 - 3


def test_a_damaged_leftover_is_thrown_away_and_fetched_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stopping = _Sender({_NAME: _BLOB}, lambda count, frame: frame if count <= 3 else None)
    with pytest.raises(TransferError):
        run(stopping.fetcher.fetch_blob(store, _NAME, len(_BLOB)))
    with store.partial(_NAME).open("r+b") as file:
        file.write(b"damage")
    run(_Sender({_NAME: _BLOB}).fetcher.fetch_blob(store, _NAME, len(_BLOB)))
    assert store.read(_NAME) == _BLOB


@pytest.mark.parametrize("content", [b"", b"EHV1", b"x" * 500])
def test_an_unreadable_bitmap_starts_the_download_anew(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path)
    store.partial(_NAME).write_bytes(b"y" * len(_BLOB))
    store.partial(_NAME).with_suffix(".have").write_bytes(content)
    run(_Sender({_NAME: _BLOB}).fetcher.fetch_blob(store, _NAME, len(_BLOB)))
    assert store.read(_NAME) == _BLOB


def test_a_sender_with_other_bytes_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    wrong = b"!" + _BLOB[1:]
    with pytest.raises(BundleError):
        run(_Sender({_NAME: wrong}).fetcher.fetch_blob(Store(tmp_path), _NAME, len(_BLOB)))
    assert list((tmp_path / "partial").iterdir()) == []
    assert not Store(tmp_path).has(_NAME)


def test_a_full_disk_is_noticed_before_the_first_byte(tmp_path: Path) -> None:
    sender = _Sender({_NAME: _BLOB})
    with pytest.raises(StoreError, match="more than the disk has"):
        run(sender.fetcher.fetch_blob(Store(tmp_path), _NAME, 1 << 50))
    assert sender.asked == []


def test_a_disk_that_fails_is_a_store_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.partial(_NAME).mkdir()
    with pytest.raises(StoreError, match="cannot write"):
        run(_Sender({_NAME: _BLOB}).fetcher.fetch_blob(store, _NAME, len(_BLOB)))


def test_a_deadline_ends_a_fetch() -> None:
    sender = _Sender({"blob": b"x"}, lambda count, frame: None)
    with pytest.raises(TransferError, match="did not arrive"):
        run(sender.fetcher.fetch_bytes("blob", limit_bytes=10, deadline_s=0.1))


def test_requests_that_cannot_be_sent_are_sent_later() -> None:
    tries = 0

    async def main() -> bytes:
        async def ask(get: Get) -> None:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise LinkError("the broker is down")
            fetcher.deliver(answer(get, MemorySource({"blob": b"x"})).encode())

        fetcher = Fetcher(ask, SystemClock(), timeout_s=0.02)
        return await fetcher.fetch_bytes("blob", limit_bytes=10)

    assert run(main()) == b"x"


def test_a_bug_in_asking_is_not_hidden() -> None:
    async def main() -> None:
        async def ask(get: Get) -> None:
            raise ZeroDivisionError

        await Fetcher(ask, SystemClock(), timeout_s=0.02).fetch_bytes("blob", limit_bytes=10)

    with pytest.raises(ZeroDivisionError):
        run(main())


def test_a_new_connection_asks_again_without_waiting() -> None:
    async def main() -> bytes:
        asked = asyncio.Event()

        async def ask(get: Get) -> None:
            if asked.is_set():
                fetcher.deliver(answer(get, MemorySource({"blob": b"x"})).encode())
            asked.set()

        fetcher = Fetcher(ask, SystemClock(), timeout_s=1000)
        task = asyncio.create_task(fetcher.fetch_bytes("blob", limit_bytes=10))
        await asked.wait()
        fetcher.lose()
        return await task

    assert run(main(), limit_s=10) == b"x"


def test_garbage_and_foreign_frames_are_ignored() -> None:
    sender = _Sender({"blob": b"x"})
    sender.fetcher.deliver(b"garbage")
    sender.fetcher.deliver(answer(Get(transfer=1, name="blob", offset=0, length=1), MemorySource({})).encode())
