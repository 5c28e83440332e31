"""The receiver asks for what it needs and believes nothing; the sender gives away nothing but blobs and metadata."""

from pathlib import Path

import pytest

from edgert.errors import NotFoundError, TransferError
from edgert.store import Store
from edgert.values import digest
from edgert.wire.chunks import Bitmap, MemorySource, Receiver, StoreSource, answer, busy
from edgert.wire.messages.blob import CHUNK_BYTES, Frame, Get, Status

_CHUNK = 16


def _receiver(size: int | None = 8 * _CHUNK, **options: int) -> Receiver:
    return Receiver("blob", 7, size=size, chunk_bytes=_CHUNK, **{"window_bytes": 4 * _CHUNK, **options})


def _frame(index: int, total: int = 8 * _CHUNK, fill: bytes = b"x") -> Frame:
    return Frame(7, Status.OK, index * _CHUNK, total, fill * min(_CHUNK, total - index * _CHUNK))


def _indices(gets: list[Get]) -> list[int]:
    return [get.offset // _CHUNK for get in gets]


def test_the_window_opens_with_success_and_waits_for_what_is_not_safe_yet() -> None:
    receiver = _receiver()
    assert _indices(receiver.requests(0.0)) == [0, 1]
    receiver.receive(_frame(0), 0.1)
    assert _indices(receiver.requests(0.1)) == [2, 3]
    for index in (1, 2, 3):
        receiver.receive(_frame(index), 0.2)
    assert receiver.blocked
    assert receiver.requests(0.2) == []
    receiver.commit(0)
    assert _indices(receiver.requests(0.2)) == [4]


def test_silence_makes_everything_asked_for_again_and_the_window_smaller() -> None:
    receiver = _receiver()
    receiver.requests(0.0)
    receiver.receive(_frame(0), 0.1)
    receiver.commit(0)
    assert _indices(receiver.requests(0.1)) == [2, 3]
    assert receiver.due(0.1) == pytest.approx(2.0)
    assert receiver.requests(2.0) == []
    assert _indices(receiver.requests(2.2)) == [1]
    assert receiver.due(2.2) == pytest.approx(4.0), "patience doubles after silence"


def test_a_chunk_that_three_later_ones_overtook_is_asked_for_at_once() -> None:
    receiver = _receiver(window_bytes=8 * _CHUNK)
    receiver.requests(0.0)
    receiver.receive(_frame(1), 0.1)
    receiver.requests(0.1)
    receiver.receive(_frame(2), 0.1)
    assert 0 not in _indices(receiver.requests(0.1))
    receiver.receive(_frame(3), 0.1)
    assert 0 in _indices(receiver.requests(0.1))


def test_a_slow_line_is_given_time() -> None:
    receiver = _receiver()
    receiver.requests(0.0)
    receiver.receive(_frame(0), 1.9)
    receiver.requests(1.9)
    assert receiver.due(1.9) == pytest.approx(5.7)


def test_a_new_connection_asks_again_at_once() -> None:
    receiver = _receiver()
    assert _indices(receiver.requests(0.0)) == [0, 1]
    receiver.lose()
    assert _indices(receiver.requests(0.0)) == [0, 1]


def test_a_busy_sender_is_asked_a_little_later() -> None:
    receiver = _receiver()
    gets = receiver.requests(0.0)
    assert receiver.receive(Frame.decode(busy(gets[1]).encode()), 0.1) is None
    assert receiver.requests(0.1) == []
    later = 0.1 + receiver.due(0.1)
    assert _indices(receiver.requests(later)) == [1]


def test_a_size_nobody_knew_is_learned_from_the_first_frame() -> None:
    receiver = _receiver(size=None)
    assert [(get.offset, get.length) for get in receiver.requests(0.0)] == [(0, _CHUNK)]
    assert receiver.receive(_frame(0, total=_CHUNK + 3), 0.1) == (0, b"x" * _CHUNK)
    receiver.commit(0)
    assert [(get.offset, get.length) for get in receiver.requests(0.1)] == [(_CHUNK, 3)]
    assert receiver.receive(_frame(1, total=_CHUNK + 3), 0.1) == (_CHUNK, b"xxx")
    assert receiver.finished


def test_an_empty_blob_is_finished_by_one_frame() -> None:
    receiver = _receiver(size=None)
    (get,) = receiver.requests(0.0)
    assert receiver.receive(answer(get, MemorySource({"blob": b""})), 0.1) is None
    assert receiver.finished
    assert _receiver(size=0).finished


def test_what_is_here_already_is_not_asked_for() -> None:
    have = Bitmap(3)
    have.add(1)
    receiver = Receiver("blob", 7, size=3 * _CHUNK, have=have, chunk_bytes=_CHUNK)
    assert _indices(receiver.requests(0.0)) == [0, 2]


@pytest.mark.parametrize(
    "frame",
    [
        Frame(8, Status.OK, 0, 8 * _CHUNK, b"x" * _CHUNK),
        Frame(7, Status.OK, 1, 8 * _CHUNK, b"x" * _CHUNK),
        Frame(7, Status.OK, 7 * _CHUNK, 8 * _CHUNK, b"x" * _CHUNK),
    ],
    ids=["another transfer", "between two chunks", "not asked for"],
)
def test_frames_nobody_asked_for_change_nothing(frame: Frame) -> None:
    receiver = _receiver()
    receiver.requests(0.0)
    assert receiver.receive(frame, 0.1) is None
    assert len(receiver.received) == 0


def test_a_repeated_frame_changes_nothing() -> None:
    receiver = _receiver()
    receiver.requests(0.0)
    assert receiver.receive(_frame(0), 0.1) is not None
    assert receiver.receive(_frame(0, fill=b"y"), 0.1) is None


@pytest.mark.parametrize(
    ("frame", "error", "words"),
    [
        (Frame(7, Status.OK, 0, 9 * _CHUNK, b"x" * _CHUNK), TransferError, "144 bytes at the sender, not 128"),
        (Frame(7, Status.OK, 0, 8 * _CHUNK, b"x"), TransferError, "1 bytes, not 16"),
        (Frame(7, Status.BAD_RANGE, 0, 5, b""), TransferError, "5 bytes"),
        (Frame(7, Status.NOT_FOUND, 0, 0, b""), NotFoundError, "does not have blob"),
    ],
)
def test_a_sender_that_contradicts_itself_is_refused(frame: Frame, error: type[Exception], words: str) -> None:
    receiver = _receiver()
    receiver.requests(0.0)
    with pytest.raises(error, match=words):
        receiver.receive(frame, 0.1)


def test_a_blob_larger_than_allowed_is_refused_before_it_is_held() -> None:
    receiver = _receiver(size=None, limit_bytes=20)
    receiver.requests(0.0)
    with pytest.raises(TransferError, match="more than the 20 allowed"):
        receiver.receive(_frame(0, total=48), 0.1)


def test_a_bitmap_that_does_not_fit_is_refused() -> None:
    with pytest.raises(TransferError, match="bitmap"):
        Receiver("blob", 7, size=3 * _CHUNK, have=Bitmap(2), chunk_bytes=_CHUNK)
    with pytest.raises(ValueError, match="no bitmap"):
        Bitmap(9, b"\0")
    with pytest.raises(ValueError, match="no bitmap"):
        Bitmap(9, b"\0\x02")
    with pytest.raises(ValueError, match="no chunk"):
        Bitmap(9).add(9)


def _get(name: str, offset: int = 0, length: int = CHUNK_BYTES) -> Get:
    return Get(transfer=7, name=name, offset=offset, length=length)


def test_only_the_asked_range_is_sent(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    name = store.add(b"0123456789")
    source = StoreSource(store)
    assert answer(_get(name, 2, 3), source) == Frame(7, Status.OK, 2, 10, b"234")
    assert answer(_get(name, 8), source) == Frame(7, Status.OK, 8, 10, b"89")
    assert answer(_get(name, 10), source).status is Status.BAD_RANGE
    assert answer(_get(name, 11), source).status is Status.BAD_RANGE
    assert answer(_get(digest(b"other")), source).status is Status.NOT_FOUND


def test_no_path_can_be_named(tmp_path: Path) -> None:
    metadata = tmp_path / "metadata"
    (metadata / "folder.json").mkdir(parents=True)
    (metadata / "1.root.json").write_bytes(b"{}")
    (metadata / ".hidden.json").write_bytes(b"secret")
    (metadata / "notes.txt").write_bytes(b"secret")
    (tmp_path / "secret.json").write_bytes(b"secret")
    (metadata / "link.json").symlink_to(tmp_path / "secret.json")
    store = Store(tmp_path / "store")
    store.partial(digest(b"half")).write_bytes(b"half")
    source = StoreSource(store, metadata)
    assert answer(_get("metadata/1.root.json"), source).data == b"{}"
    for name in (
        "metadata/../secret.json",
        "metadata//1.root.json",
        "metadata/folder.json",
        "metadata/.hidden.json",
        "metadata/notes.txt",
        "metadata/link.json",
        "metadata/1.root.json\n",
        f"metadata/{metadata}/1.root.json",
        str(metadata / "1.root.json"),
        digest(b"half"),
        "sha256:../../metadata/1.root.json",
        f"{digest(b'half')}/..",
    ):
        assert answer(_get(name), source).status is Status.NOT_FOUND, name
    assert answer(_get("metadata/1.root.json"), StoreSource(store)).status is Status.NOT_FOUND


def test_a_blob_that_shrinks_under_the_senders_hands_is_asked_for_again() -> None:
    class Shrinking(MemorySource):
        def size(self, name: str) -> int | None:
            return 100

    frame = answer(_get("blob", 5, 10), Shrinking({"blob": b"short"}))
    assert Frame.decode(frame.encode()).status is Status.BUSY
