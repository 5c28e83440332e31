import json
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edgert.errors import InputError
from edgert.serving.codecs import (
    Wanted,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from edgert.serving.tensors import DATATYPES, datatype_of

NUMBERS = [dtype for name, dtype in DATATYPES.items() if name != "BYTES"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def arrays(draw: st.DrawFn, *, finite: bool) -> NDArray[Any]:
    if draw(st.booleans()):
        words = draw(hnp.arrays(object, SHAPES, elements=st.text(max_size=5).map(str.encode)))
        return np.asarray(words, object)
    dtype = draw(st.sampled_from(NUMBERS))
    options: dict[str, Any] = {"allow_nan": not finite, "allow_infinity": not finite} if dtype.kind == "f" else {}
    return np.asarray(draw(hnp.arrays(dtype, SHAPES, elements=hnp.from_dtype(dtype, **options))))


def same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def text(length: int | None) -> str | None:
    return None if length is None else str(length)


@given(st.dictionaries(st.text(min_size=1, max_size=5), arrays(finite=True), max_size=3))
def test_json_request_comes_back_as_it_was(inputs: dict[str, NDArray[Any]]) -> None:
    encoded = encode_request(inputs)
    assert encoded.header_length is None
    decoded = decode_request(encoded.body).inputs
    assert decoded.keys() == inputs.keys()
    assert all(same(decoded[name], inputs[name]) for name in inputs)


@given(st.dictionaries(st.text(min_size=1, max_size=5), arrays(finite=False), min_size=1, max_size=3))
def test_binary_request_comes_back_as_it_was(inputs: dict[str, NDArray[Any]]) -> None:
    encoded = encode_request(inputs, binary=True, binary_outputs=True, request_id="7")
    decoded = decode_request(encoded.body, text(encoded.header_length))
    assert (decoded.id, decoded.binary_outputs, decoded.outputs) == ("7", True, None)
    assert all(same(decoded.inputs[name], inputs[name]) for name in inputs)
    assert all(array.flags.aligned for array in decoded.inputs.values())


@given(st.lists(st.tuples(arrays(finite=True), st.booleans()), max_size=4))
def test_mixed_response_comes_back_as_it_was(outputs: list[tuple[NDArray[Any], bool]]) -> None:
    named = [(f"y{i}", array, binary) for i, (array, binary) in enumerate(outputs)]
    encoded = encode_response("m", "3", named, "id")
    assert (encoded.header_length is not None) == any(binary for _, binary in outputs)
    decoded = decode_response(encoded.body, text(encoded.header_length))
    assert (decoded.model, decoded.version, decoded.id) == ("m", "3", "id")
    assert all(same(decoded.outputs[name], array) for name, array, _ in named)


@given(st.binary(max_size=80), st.none() | st.text(max_size=5) | st.integers(-5, 90).map(str))
def test_any_bytes_are_decoded_or_refused(body: bytes, header_length: str | None) -> None:
    with suppress(InputError):
        decode_request(body, header_length)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3) | st.sampled_from(sorted(DATATYPES)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)  # fmt: skip
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("x") | JSON_VALUES,
        "datatype": st.sampled_from([*DATATYPES, "BF16"]) | JSON_VALUES,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | JSON_VALUES,
        "data": st.lists(st.integers(-1, 300), max_size=6) | JSON_VALUES,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 30) | JSON_VALUES})
        | JSON_VALUES,
    },
)


@given(st.lists(TENSORS, max_size=2), JSON_VALUES, st.binary(max_size=30))
def test_any_json_is_decoded_or_refused(inputs: list[Any], outputs: Any, tail: bytes) -> None:
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    for body, length in ((head, None), (head + tail, str(len(head)))):
        with suppress(InputError):
            decode_request(body, length)


def request(**tensor: Any) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "shape": [2], "datatype": "FP32"} | tensor]}).encode()


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        ({"data": [1, 2, 3]}, "has 3 values"),
        ({"data": [1]}, "has 1 values"),
        ({"data": [[1, 2]]}, "not nested"),
        ({"data": [1, [2]]}, "numbers only"),
        ({"data": [1, "2"]}, "numbers only"),
        ({"data": [1, None]}, "numbers only"),
        ({"data": [1, True]}, "numbers only"),
        ({"data": {"0": 1}}, "must be a list"),
        ({"data": 5}, "must be a list"),
        ({"data": [1e300, 1]}, "cannot express"),
        ({"data": [1.0, 2.0], "datatype": "INT8"}, "integers only"),
        ({"data": [1, 128], "datatype": "INT8"}, "outside -128..127"),
        ({"data": [-1, 1], "datatype": "UINT64"}, "outside 0.."),
        ({"data": [0, 2], "datatype": "BOOL"}, "true or false"),
        ({"data": [1, 2], "datatype": "BYTES"}, "strings"),
        ({"data": [1, 2], "datatype": "BF16"}, "BF16 is not supported"),
        ({"data": [1, 2], "datatype": "float"}, "not a datatype"),
        ({"data": [1, 2], "datatype": 5}, "no datatype"),
        ({"data": [1, 2], "shape": [-2]}, "0 or more"),
        ({"data": [1, 2], "shape": [2.0]}, "integers"),
        ({"data": [1, 2], "shape": [True, 2]}, "integers"),
        ({"data": [1, 2], "shape": "2"}, "integers"),
        ({"data": [1, 2], "shape": [1] * 33}, "at most 32"),
        ({"data": [1, 2], "shape": [1 << 40, 1 << 40]}, "sizes in shape"),
        ({"data": [], "shape": [1 << 62, 0]}, "real"),
        ({}, "either data or"),
        ({"data": [1, 2], "parameters": {"binary_data_size": 8}}, "either data or"),
        ({"data": [1, 2], "parameters": 7}, "must be an object"),
        ({"parameters": {"binary_data_size": -8}}, "number of bytes"),
        ({"parameters": {"binary_data_size": True}}, "number of bytes"),
        ({"parameters": {"binary_data_size": 8}}, "only 0 are left"),
        ({"parameters": {"shared_memory_region": "r"}}, "shared memory"),
        ({"data": [1, 2], "name": 7}, "no name"),
    ],
)
def test_hostile_tensor_is_refused_with_its_reason(tensor: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        decode_request(request(**tensor))


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "not JSON"),
        (b"[]", "JSON object"),
        (b'{"inputs": {}}', "list of objects"),
        (b'{"inputs": [1]}', "list of objects"),
        (b'{"id": 1, "inputs": []}', "must be a string"),
        (b'{"inputs": [{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}', "not JSON"),
        (b'{"inputs": [], "outputs": [{"name": "y"}, {"name": "y"}]}', "twice"),
        (b'{"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": 3}}]}', "classification"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "not JSON"),
    ],
)
def test_hostile_body_is_refused_with_its_reason(body: bytes, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        decode_request(body)


@pytest.mark.parametrize("header", ["-1", "0", "+5", "1_0", "٣", "9" * 40, "99999", "", "5.0", "0x10"])
def test_lying_header_length_is_refused(header: str) -> None:
    body = encode_request({"x": np.zeros(4, np.float32)}, binary=True).body
    with pytest.raises(InputError):
        decode_request(body, header)


def test_header_length_inside_the_tensors_is_refused() -> None:
    encoded = encode_request({"x": np.ones(4, np.float32)}, binary=True)
    for lie in (1, -1):
        with pytest.raises(InputError):
            decode_request(encoded.body, str((encoded.header_length or 0) + lie))


@pytest.mark.parametrize(
    ("shape", "datatype", "data", "complaint"),
    [
        ([3], "FP32", bytes(8), "has 8 bytes, FP32 of shape 3 has 12"),
        ([1 << 40], "FP32", bytes(8), "has 8 bytes"),
        ([1 << 40], "BYTES", bytes(8), "too few"),
        ([1], "BYTES", struct.pack("<I", 1 << 31) + b"a", "beyond the end"),
        ([2], "BYTES", struct.pack("<I", 3) + b"abc" + b"\x01", "beyond the end"),
        ([1], "BYTES", struct.pack("<I", 1) + b"abc", "too many"),
        ([2], "BOOL", b"\x00\x02", "bytes 0 or 1"),
        ([2], "BF16", bytes(4), "BF16"),
    ],
)
def test_hostile_binary_tensor_is_refused(shape: list[int], datatype: str, data: bytes, complaint: str) -> None:
    row = {"name": "x", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [row]}).encode()
    with pytest.raises(InputError, match=complaint):
        decode_request(head + data, str(len(head)))


def test_bytes_that_belong_to_no_tensor_are_refused() -> None:
    encoded = encode_request({"x": np.ones(2, np.float32)}, binary=True)
    with pytest.raises(InputError, match="belong to no tensor"):
        decode_request(encoded.body + b"!", str(encoded.header_length))


def test_one_long_string_among_numbers_costs_no_memory() -> None:
    data = ["a" * 1_000_000, *range(100_000)]
    with pytest.raises(InputError, match="numbers only"):
        decode_request(request(shape=[len(data)], data=data))


def test_nested_data_is_read_in_row_major_order() -> None:
    decoded = decode_request(request(shape=[2, 1, 3], data=[[[1, 2, 3]], [[4, 5, 6]]])).inputs["x"]
    assert decoded.shape == (2, 1, 3)
    assert decoded.ravel().tolist() == [1, 2, 3, 4, 5, 6]


def test_binary_is_chosen_per_output_over_the_default() -> None:
    body = json.dumps(
        {
            "inputs": [],
            "parameters": {"binary_data_output": True},
            "outputs": [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}],
        }
    ).encode()
    assert decode_request(body).outputs == (Wanted("a", True), Wanted("b", False))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answer_that_json_cannot_express_is_refused_with_advice(value: float) -> None:
    output = np.array([1, value], np.float32)
    with pytest.raises(InputError, match="JSON cannot express") as refusal:
        encode_response("m", "1", [("y", output, False)])
    assert "binary" in refusal.value.hint
    encoded = encode_response("m", "1", [("y", output, True)])
    assert same(decode_response(encoded.body, text(encoded.header_length)).outputs["y"], output)


def test_bytes_that_are_no_text_go_as_binary_only() -> None:
    output = np.array([b"\xff"], object)
    with pytest.raises(InputError, match="not text"):
        encode_response("m", "1", [("y", output, False)])
    assert encode_response("m", "1", [("y", output, True)]).header_length


@pytest.mark.parametrize(("dtype", "datatype"), [("float32", "FP32"), ("str", "BYTES"), ("uint8", "UINT8")])
def test_element_types_have_the_names_of_the_protocol(dtype: str, datatype: str) -> None:
    assert datatype_of(dtype) == datatype


def test_element_type_without_a_name_is_refused() -> None:
    with pytest.raises(InputError, match="bfloat16"):
        datatype_of("bfloat16")


@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "BOOL"])
@pytest.mark.parametrize("shape", [[0, 1 << 48, 1 << 48, 1 << 48], [0, 1 << 25, 1 << 25], [1 << 60], [0] + [9] * 31])
def test_empty_tensor_of_an_astronomic_shape_is_refused(shape: list[int], datatype: str) -> None:
    row = {"name": "x", "shape": shape, "datatype": datatype}
    bodies: tuple[dict[str, Any], ...] = ({"data": []}, {"parameters": {"binary_data_size": 0}})
    for body in bodies:
        head = json.dumps({"inputs": [row | body]}).encode()
        with pytest.raises(InputError, match="sizes in shape"):
            decode_request(head, str(len(head)))
