"""Samples files, friendly and hostile."""

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgert.errors import SamplesError
from edgert.samples import Samples, load, load_arrays, pack_arrays, save
from edgert.values import TensorSpec

X = TensorSpec("x", "float32", (None, 4))


class _Trap:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@given(
    st.dictionaries(
        st.text("abc./_-", min_size=1, max_size=5),
        hnp.arrays(st.sampled_from(["float32", "int64", "uint8", "bool"]), hnp.array_shapes(min_dims=0, max_side=4)),
        min_size=1,
        max_size=4,
    )
)
def test_what_is_packed_is_read_again(arrays: dict[str, np.ndarray]) -> None:
    found = load_arrays(io.BytesIO(pack_arrays(arrays)))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_the_same_arrays_give_the_same_bytes_in_any_order() -> None:
    a, b = np.arange(3.0), np.arange(4)
    assert pack_arrays({"a": a, "b": b}) == pack_arrays({"b": b, "a": a.copy()})


def test_a_row_is_a_batch_of_one(tmp_path: Path) -> None:
    save(tmp_path / "s.npz", {"x": np.arange(8, dtype=np.float64).reshape(2, 4), "labels": np.array([0, 1])})
    samples = load(tmp_path / "s.npz")
    feeds = list(samples.feeds([X]))
    assert len(samples) == len(feeds) == 2
    assert feeds[1]["x"].shape == (1, 4)
    assert feeds[1]["x"].dtype == np.float32
    assert samples.labels is not None


def test_with_one_axis_more_each_entry_is_a_whole_input() -> None:
    samples = Samples({"x": np.zeros((5, 3, 4), np.float32)})
    assert [feed["x"].shape for feed in samples.feeds([X])] == [(3, 4)] * 5


def test_taking_keeps_inputs_and_labels_together() -> None:
    samples = Samples({"x": np.arange(12).reshape(3, 4)}, np.array([7, 8, 9]))
    part = samples.take(np.array([2, 0]))
    assert part.inputs["x"][:, 0].tolist() == [8, 0]
    assert part.labels is not None
    assert part.labels.tolist() == [9, 7]


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 1, 3), (5, 1, 1, 4)])
def test_a_shape_that_does_not_fit_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(SamplesError, match=r"'x' have shape .* is \?x4"):
        list(Samples({"x": np.zeros(shape)}).feeds([X]))


def test_a_missing_input_is_named() -> None:
    with pytest.raises(SamplesError, match="no array 'x'") as caught:
        list(Samples({"y": np.zeros((1, 4))}).feeds([X]))
    assert "name each array" in caught.value.hint


def test_a_pickled_object_is_never_run(tmp_path: Path) -> None:
    path, trap = tmp_path / "s.npz", tmp_path / "sprung"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + pickle.dumps(_Trap(trap)))
    with pytest.raises(SamplesError, match="not a readable"):
        load(path)
    assert not trap.exists()


def test_a_bare_pickle_is_never_run(tmp_path: Path) -> None:
    path, trap = tmp_path / "s.npz", tmp_path / "sprung"
    path.write_bytes(pickle.dumps(_Trap(trap)))
    with pytest.raises(SamplesError):
        load(path)
    assert not trap.exists()


def test_a_file_that_would_unpack_to_many_gigabytes_is_refused_before_it_does(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.writestr(f"x{i}.npy", bytes(1000))
    data = bytearray(path.read_bytes())
    place = data.find(b"PK\x01\x02")
    while place >= 0:  # the sizes in the directory of the archive
        data[place + 24 : place + 28] = struct.pack("<I", 0xF0000000)
        place = data.find(b"PK\x01\x02", place + 4)
    path.write_bytes(data)
    with pytest.raises(SamplesError, match="8589934592 bytes"):
        load(path)


def test_an_array_header_that_promises_terabytes_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 44,)})
    with zipfile.ZipFile(tmp_path / "s.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    with pytest.raises(SamplesError, match="not a readable"):
        load(tmp_path / "s.npz")


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", bytes(1000), b"\x93NUMPY" + bytes(50)],
)
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(SamplesError) as caught:
        load(tmp_path / "s.npz")
    assert caught.value.hint


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.npz", "w") as archive:
        archive.writestr("word/document.xml", b"<w/>")
    with pytest.raises(SamplesError, match="it holds 'word"):
        load(tmp_path / "s.npz")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    data = pack_arrays({"x": np.arange(1000)})
    for size in (len(data) - 1, len(data) // 2, 30):
        (tmp_path / "s.npz").write_bytes(data[:size])
        with pytest.raises(SamplesError):
            load(tmp_path / "s.npz")


def test_a_damaged_byte_is_noticed(tmp_path: Path) -> None:
    data = bytearray(pack_arrays({"x": np.arange(1000)}))
    data[2000] ^= 1
    (tmp_path / "s.npz").write_bytes(data)
    with pytest.raises(SamplesError, match="CRC"):
        load(tmp_path / "s.npz")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SamplesError, match="there is no file"):
        load(tmp_path / "none.npz")
    with pytest.raises(SamplesError):
        load(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((2, 4)), "y": np.zeros((3, 4))}, "differ in length"),
        ({"x": np.zeros((2, 4)), "labels": np.zeros(3)}, "differ in length"),
        ({"x": np.float32(1)}, "differ in length"),
        ({"labels": np.zeros(3)}, "no input arrays"),
        ({"x": np.zeros((0, 4))}, "no samples"),
    ],
)
def test_arrays_that_are_no_samples_are_refused(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    save(tmp_path / "s.npz", arrays)
    with pytest.raises(SamplesError, match=words):
        load(tmp_path / "s.npz")


def _packed(compression: int = zipfile.ZIP_DEFLATED) -> bytearray:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        content = io.BytesIO()
        np.save(content, np.arange(1000, dtype=np.float32))
        archive.writestr("x.npy", content.getvalue())
    return bytearray(buffer.getvalue())


@pytest.mark.parametrize("at", [60, 100, 200, 400])
def test_a_corrupt_deflate_stream_is_an_error_of_ours(at: int) -> None:
    data = _packed()
    data[at : at + 6] = b"\xff" * 6
    with pytest.raises(SamplesError):
        load_arrays(io.BytesIO(bytes(data)))


def test_a_way_of_packing_that_numpy_never_uses_is_refused() -> None:
    with pytest.raises(SamplesError, match="packed in another way"):
        load_arrays(io.BytesIO(bytes(_packed(zipfile.ZIP_LZMA))))


def test_a_file_that_unpacks_to_more_than_allowed_is_refused_before_it_is_read() -> None:
    with pytest.raises(SamplesError, match="more than 1000 bytes"):
        load_arrays(io.BytesIO(bytes(_packed())), limit_bytes=1000)
