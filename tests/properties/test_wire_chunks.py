"""Whatever the way does to frames, a transfer ends in the exact bytes, and never asks past its window."""

import random

from hypothesis import given
from hypothesis import strategies as st

from edgert.wire.chunks import Bitmap, MemorySource, Receiver, answer
from edgert.wire.messages.blob import Frame, Get

_CHUNK = 16


@given(
    data=st.binary(max_size=40 * _CHUNK),
    known=st.booleans(),
    window=st.integers(1, 8),
    seed=st.integers(0, 1 << 32),
    loss=st.floats(0, 0.6),
    have=st.sets(st.integers(0, 39)),
)
def test_any_loss_repetition_and_order_ends_in_the_exact_bytes(
    data: bytes, known: bool, window: int, seed: int, loss: float, have: set[int]
) -> None:
    rng = random.Random(seed)
    here = Bitmap(-(-len(data) // _CHUNK))
    result = bytearray(len(data))
    if known:
        for index in sorted(index for index in have if index < here.count):
            here.add(index)
            result[index * _CHUNK : (index + 1) * _CHUNK] = data[index * _CHUNK : (index + 1) * _CHUNK]
    receiver = Receiver(
        "blob",
        7,
        size=len(data) if known else None,
        have=here if known else None,
        chunk_bytes=_CHUNK,
        window_bytes=window * _CHUNK,
        timeout_s=1.0,
    )
    source = MemorySource({"blob": data})
    flying: list[Frame] = []
    asked: set[int] = set()
    unsafe: list[int] = []
    now = 0.0
    for _ in range(20_000):
        if receiver.finished:
            break
        for get in receiver.requests(now):
            asked.add(get.offset)
            assert len(asked) + len(unsafe) <= window
            frame = answer(Get.decode(get.encode()), source)
            flying += [frame] * (0 if rng.random() < loss else rng.choice([1, 1, 2]))
        rng.shuffle(flying)
        if flying:
            piece = receiver.receive(Frame.decode(flying.pop().encode()), now)
            if piece is not None:
                offset, part = piece
                assert offset in asked
                asked.discard(offset)
                unsafe.append(offset)
                result[offset : offset + len(part)] = part
        if unsafe and (receiver.blocked or rng.random() < 0.3):
            receiver.commit(unsafe.pop())
        if not flying:
            now += max(receiver.due(now), 0.001)
    assert receiver.finished
    assert bytes(result) == data


@given(count=st.integers(0, 200), indices=st.sets(st.integers(0, 199)))
def test_a_bitmap_comes_back_from_its_bytes(count: int, indices: set[int]) -> None:
    bitmap = Bitmap(count)
    mine = {index for index in indices if index < count}
    for index in mine:
        assert bitmap.add(index)
        assert not bitmap.add(index)
    again = Bitmap(count, bitmap.encode())
    assert set(again.missing()) == set(range(count)) - mine
    assert len(again) == len(mine)
    assert again.full == (len(mine) == count)
