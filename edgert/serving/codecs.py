"""Bodies of the Open Inference Protocol v2 <-> named arrays: JSON, binary tensors, and both mixed.

A body with binary tensors is JSON, directly followed by the raw bytes of each binary tensor in order; the HTTP header
`Inference-Header-Content-Length` says where the JSON ends. Both directions of both halves are here: the endpoint
decodes requests and encodes responses, a client does the opposite.

Source: Open Inference Protocol v2 (REST) and its binary tensor data extension.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from numpy.typing import NDArray

from edgert.errors import InputError
from edgert.serving.tensors import MAX_RANK, datatype_of, from_bytes, from_json, to_bytes, to_json

__all__ = [
    "HEADER_LENGTH",
    "Encoded",
    "Request",
    "Response",
    "Wanted",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
]

HEADER_LENGTH = "inference-header-content-length"
_MAX_SIZE = 1 << 48
_MAX_TENSORS = 1024
_Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A body, and the length of its JSON part when binary tensors follow."""

    body: bytes
    header_length: int | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output the caller asks for, and whether as binary tensor."""

    name: str
    binary: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller sent.

    Args:
        inputs: arrays by input name; BYTES are arrays of `bytes`.
        outputs: those asked for, or None for all.
        binary_outputs: whether outputs are binary where nothing else is said.
        id: given back in the answer.
    """

    inputs: dict[str, NDArray[Any]]
    outputs: tuple[Wanted, ...] | None = None
    binary_outputs: bool = False
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """What the endpoint answered."""

    model: str
    version: str
    outputs: dict[str, NDArray[Any]]
    id: str | None = None


def decode_request(body: bytes, header_length: str | None = None) -> Request:
    """The request in a body.

    Args:
        header_length: the text of the HTTP header `Inference-Header-Content-Length`, if there was one.

    Raises:
        InputError: the body is malformed.
    """
    head, binary = _split(body, header_length)
    parameters = _parameters(head, "the request")
    return Request(
        inputs=_tensors(_rows(head, "inputs"), binary),
        outputs=_wanted(head, bool(parameters.get("binary_data_output", False))),
        binary_outputs=bool(parameters.get("binary_data_output", False)),
        id=_id(head),
    )


def encode_response(
    model: str, version: str, outputs: Sequence[tuple[str, NDArray[Any], bool]], request_id: str | None = None
) -> Encoded:
    """The body of an answer.

    Args:
        outputs: name, array, and whether as binary tensor.

    Raises:
        InputError: JSON cannot express a value of an output that was not asked for as binary.
    """
    head: _Row = {"model_name": model, "model_version": version}
    if request_id is not None:
        head["id"] = request_id
    return _join(head, "outputs", outputs)


def encode_request(
    inputs: Mapping[str, NDArray[Any]],
    *,
    binary: bool = False,
    outputs: Sequence[Wanted] | None = None,
    binary_outputs: bool = False,
    request_id: str | None = None,
) -> Encoded:
    """The body of a request.

    Args:
        binary: send the inputs as binary tensors.
        outputs: those wanted, or None for all.
        binary_outputs: whether outputs shall be binary where `outputs` says nothing.

    Raises:
        InputError: JSON cannot express a value of an input.
    """
    head: _Row = {} if request_id is None else {"id": request_id}
    if binary_outputs:
        head["parameters"] = {"binary_data_output": True}
    if outputs is not None:
        head["outputs"] = [{"name": row.name, "parameters": {"binary_data": row.binary}} for row in outputs]
    return _join(head, "inputs", [(name, array, binary) for name, array in inputs.items()])


def decode_response(body: bytes, header_length: str | None = None) -> Response:
    """The answer in a body.

    Raises:
        InputError: the body is malformed.
    """
    head, binary = _split(body, header_length)
    outputs = _tensors(_rows(head, "outputs"), binary)
    return Response(str(head.get("model_name", "")), str(head.get("model_version", "")), outputs, _id(head))


def _join(head: _Row, member: str, tensors: Sequence[tuple[str, NDArray[Any], bool]]) -> Encoded:
    rows: list[_Row] = []
    parts: list[bytes] = []
    for name, array, binary in tensors:
        row: _Row = {"name": name, "datatype": datatype_of(array.dtype.name), "shape": list(array.shape)}
        if binary:
            parts.append(to_bytes(array))
            row["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            row["data"] = to_json(name, array)
        rows.append(row)
    json = orjson.dumps(head | {member: rows}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Encoded(b"".join((json, *parts)), len(json)) if parts else Encoded(json)


def _split(body: bytes, header_length: str | None) -> tuple[_Row, memoryview]:
    view = memoryview(body)
    end = len(body) if header_length is None else _length(header_length, len(body))
    try:
        head = orjson.loads(view[:end])
    except orjson.JSONDecodeError as e:
        hint = "NaN and Infinity are not JSON" if header_length is None else f"is {HEADER_LENGTH} right?"
        raise InputError(f"the body is not JSON: {e}", hint=hint) from e
    if not isinstance(head, dict):
        raise InputError("the body must be a JSON object", hint='{"inputs": [{"name", "shape", "datatype", "data"}]}')
    return head, view[end:]


def _length(text: str, size: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise InputError(f"the header {HEADER_LENGTH} is {text[:40]!r}, not a length")
    if int(text) == 0:
        raise InputError("a body without a JSON part is not supported", hint="put the JSON part before the tensors")
    if int(text) > size:
        raise InputError(f"the header {HEADER_LENGTH} is {text}, the body has only {size} bytes")
    return int(text)


def _rows(head: _Row, member: str) -> list[_Row]:
    rows = head.get(member)
    if not isinstance(rows, list) or len(rows) > _MAX_TENSORS or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{member!r} must be a list of objects", hint=f'"{member}": [{{"name": ...}}]')
    return rows


def _parameters(row: _Row, what: str) -> _Row:
    parameters = row.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InputError(f"the parameters of {what} must be an object")
    return parameters


def _id(head: _Row) -> str | None:
    value = head.get("id")
    if value is not None and not isinstance(value, str):
        raise InputError("'id' must be a string")
    return value


def _tensors(rows: list[_Row], binary: memoryview) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    place = 0
    for row in rows:
        name, datatype, shape = _name(row), row.get("datatype"), _shape(row)
        if name in arrays:
            raise InputError(f"tensor {name!r} is there twice")
        if not isinstance(datatype, str):
            raise InputError(f"tensor {name!r} has no datatype", hint='for example "datatype": "FP32"')
        size = _binary_size(row, name)
        if size is None:
            arrays[name] = from_json(name, datatype, shape, row["data"])
            continue
        if place + size > len(binary):
            raise InputError(
                f"tensor {name!r} says {size} bytes, only {len(binary) - place} are left in the body",
                hint=f"binary tensors need the header {HEADER_LENGTH}: the length of the JSON part",
            )
        arrays[name] = from_bytes(name, datatype, shape, binary[place : place + size])
        place += size
    if place != len(binary):
        raise InputError(f"{len(binary) - place} bytes of the body belong to no tensor", hint="check binary_data_size")
    return arrays


def _name(row: _Row) -> str:
    name = row.get("name")
    if not isinstance(name, str) or not name:
        raise InputError("a tensor has no name", hint='each entry needs a "name"')
    return name


def _shape(row: _Row) -> tuple[int, ...]:
    shape = row.get("shape")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(type(size) is int for size in shape):
        raise InputError(f"tensor {row.get('name')!r}: shape must be a list of at most {MAX_RANK} integers")
    if any(size < 0 for size in shape) or math.prod(max(1, size) for size in shape) > _MAX_SIZE:
        raise InputError(f"tensor {row.get('name')!r}: the sizes in shape must be 0 or more, and real")
    return tuple(shape)


def _binary_size(row: _Row, name: str) -> int | None:
    """Bytes of a binary tensor, or None when the data is JSON."""
    parameters = _parameters(row, f"tensor {name!r}")
    if "shared_memory_region" in parameters:
        raise InputError(f"tensor {name!r}: shared memory is not supported", hint="send the bytes in the body")
    size = parameters.get("binary_data_size")
    if (size is None) == ("data" not in row):
        raise InputError(
            f"tensor {name!r} needs either data or the parameter binary_data_size",
            hint='for example "data": [1.0, 2.0]',
        )
    if size is not None and (type(size) is not int or size < 0):
        raise InputError(f"tensor {name!r}: binary_data_size must be a number of bytes")
    return size


def _wanted(head: _Row, default: bool) -> tuple[Wanted, ...] | None:
    if not head.get("outputs"):
        return None
    wanted: dict[str, Wanted] = {}
    for row in _rows(head, "outputs"):
        name = _name(row)
        parameters = _parameters(row, f"output {name!r}")
        for unknown in ("classification", "shared_memory_region"):
            if parameters.get(unknown):
                raise InputError(f"output {name!r}: the parameter {unknown} is not supported", hint="leave it out")
        if name in wanted:
            raise InputError(f"output {name!r} is asked for twice")
        wanted[name] = Wanted(name, bool(parameters.get("binary_data", default)))
    return tuple(wanted.values())
