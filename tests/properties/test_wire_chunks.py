"""Whatever the way does to frames, a transfer ends in the exact bytes, and never asks past its window."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import TransferError
from edgert.wire.chunks import Bitmap, Receiver, answer
from edgert.wire.messages.blob import Frame, Get, Status

_CHUNK = 16


class _Memory:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def size(self, name: str) -> int | None:
        return len(self._data) if name == "blob" else None

    def read(self, name: str, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


@given(
    data=st.binary(max_size=40 * _CHUNK),
    known=st.booleans(),
    window=st.integers(1, 8),
    seed=st.integers(0, 1 << 32),
    loss=st.floats(0, 0.6),
)
def test_any_loss_repetition_and_order_ends_in_the_exact_bytes(
    data: bytes, known: bool, window: int, seed: int, loss: float
) -> None:
    rng = random.Random(seed)
    receiver = Receiver(
        "blob", 7, size=len(data) if known else None, chunk_bytes=_CHUNK, window_bytes=window * _CHUNK, timeout_s=1.0
    )
    result = bytearray(len(data))
    flying: list[Frame] = []
    now = 0.0
    while not receiver.finished:
        asked = receiver.requests(now)
        assert len(asked) <= window
        for get in asked:
            frame = answer(Get.decode(get.encode()), _Memory(data))
            flying += [frame] * (0 if rng.random() < loss else rng.choice([1, 1, 2]))
        rng.shuffle(flying)
        if flying:
            piece = receiver.receive(Frame.decode(flying.pop().encode()), now)
            if piece is not None:
                result[piece[0] : piece[0] + len(piece[1])] = piece[1]
        else:
            now = receiver.wake_at(now)
    assert bytes(result) == data


@given(count=st.integers(1, 200), indices=st.sets(st.integers(0, 199)))
def test_a_bitmap_comes_back_from_its_bytes(count: int, indices: set[int]) -> None:
    bitmap = Bitmap(count)
    mine = {index for index in indices if index < count}
    for index in mine:
        bitmap.add(index)
    again = Bitmap(count, bytes(bitmap))
    assert set(again.missing()) == set(range(count)) - mine
    assert again.held == len(mine)
    assert again.complete == (len(mine) == count)


def test_a_sender_that_changes_the_size_is_refused() -> None:
    receiver = Receiver("blob", 7, size=32, chunk_bytes=_CHUNK)
    with pytest.raises(TransferError, match="expected 32"):
        receiver.receive(Frame(7, Status.OK, 0, 48, b"x" * _CHUNK), 0.0)


def test_bytes_that_were_not_asked_for_are_refused() -> None:
    receiver = Receiver("blob", 7, size=32, chunk_bytes=_CHUNK)
    with pytest.raises(TransferError, match="not asked for"):
        receiver.receive(Frame(7, Status.OK, 8, 32, b"x" * _CHUNK), 0.0)


def test_frames_of_another_transfer_change_nothing() -> None:
    receiver = Receiver("blob", 7, size=32, chunk_bytes=_CHUNK)
    assert receiver.receive(Frame(8, Status.OK, 0, 32, b"x" * _CHUNK), 0.0) is None
    assert receiver.have.held == 0


def test_a_blob_larger_than_allowed_is_refused_before_it_is_held() -> None:
    receiver = Receiver("blob", 7, chunk_bytes=_CHUNK, limit_bytes=20)
    with pytest.raises(TransferError, match="more than the 20 allowed"):
        receiver.receive(Frame(7, Status.OK, 0, 48, b"x" * _CHUNK), 0.0)
