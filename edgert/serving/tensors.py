"""One tensor of the Open Inference Protocol <-> one numpy array, as JSON data or as raw bytes.

Limits come first: a shape is checked against the data that is really there before anything is allocated for it.
Strings and bytes are datatype ``BYTES`` and arrays of Python `bytes` (dtype ``object``).

Source: Open Inference Protocol v2, "Tensor Data"; binary tensor data extension.
"""

import math
import struct
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgert.errors import InputError
from edgert.values import show_shape

__all__ = ["DATATYPES", "MAX_RANK", "datatype_of", "from_bytes", "from_json", "to_bytes", "to_json"]

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8), "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32), "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8), "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32), "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16), "FP32": np.dtype(np.float32), "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}  # fmt: skip
MAX_RANK = 32
_BY_NAME = {dtype.name: name for name, dtype in DATATYPES.items()} | {"str": "BYTES"}
_LENGTH = struct.Struct("<I")


def datatype_of(dtype: str) -> str:
    """The protocol's name of an element type.

    Args:
        dtype: numpy's name (``float32``), or ``str``.

    Raises:
        InputError: the protocol has no such type here.
    """
    name = _BY_NAME.get(dtype) or ("BYTES" if dtype.startswith(("str", "bytes")) else None)
    if name is None:
        raise InputError(
            f"elements of type {dtype!r} cannot be sent or received", hint=f"known: {', '.join(DATATYPES)}"
        )
    return name


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: object) -> NDArray[Any]:
    """The array in a tensor's `data` member: flat, or nested exactly as the shape says.

    Raises:
        InputError: the data does not fit the shape or the datatype.
    """
    dtype = _dtype(name, datatype)
    values = _flat(name, shape, data)
    kinds = set(map(type, values))
    match dtype.kind:
        case "f":
            array = _floats(name, datatype, dtype, values, kinds)
        case "i" | "u":
            array = _integers(name, datatype, dtype, values, kinds)
        case "b":
            if not (kinds <= {bool} or (kinds <= {bool, int} and min(values) >= 0 and max(values) <= 1)):
                raise _wrong(name, datatype, "true or false")
            array = np.array(values, dtype)
        case _:
            if not kinds <= {str}:
                raise _wrong(name, datatype, "strings")
            array = _objects([value.encode("utf-8", "surrogatepass") for value in values])
    return array.reshape(shape)


def from_bytes(name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> NDArray[Any]:
    """The array in raw bytes: little endian, row-major; BYTES elements each behind a 4-byte length.

    The result may share memory with `data`.

    Raises:
        InputError: the number of bytes is not what shape and datatype ask for.
    """
    dtype = _dtype(name, datatype)
    count = math.prod(shape)
    if dtype.kind == "O":
        return _split(name, count, data).reshape(shape)
    size = count * dtype.itemsize
    if len(data) != size:
        raise InputError(
            f"tensor {name!r} has {len(data)} bytes, {datatype} of shape {show_shape(shape)} has {size}",
            hint="binary_data_size must be the product of the shape times the size of one element",
        )
    array: NDArray[Any] = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype, copy=False)
    if dtype.kind == "b" and count and int(array.view(np.uint8).max()) > 1:
        raise _wrong(name, datatype, "bytes 0 or 1")
    if not array.flags.aligned:
        array = array.copy()
    return array.reshape(shape)


def to_json(name: str, array: NDArray[Any]) -> Any:
    """The flat `data` member for an array: something orjson writes.

    Raises:
        InputError: JSON cannot express a value: NaN, an infinity, or bytes that are not text.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.kind in "OUS":
        try:
            return [str(item, "utf-8") if isinstance(item, bytes) else str(item) for item in flat.tolist()]
        except UnicodeDecodeError as e:
            raise InputError(f"tensor {name!r} holds bytes that are not text", hint=_ASK_BINARY) from e
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        raise InputError(f"tensor {name!r} holds NaN or an infinity, which JSON cannot express", hint=_ASK_BINARY)
    return flat.astype(np.float32) if flat.dtype == np.float16 else flat


def to_bytes(array: NDArray[Any]) -> bytes:
    """The raw bytes of an array, as `from_bytes` reads them."""
    if array.dtype.kind in "OUS":
        items = [item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1).tolist()]
        return b"".join(part for item in items for part in (_LENGTH.pack(len(item)), item))
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


_ASK_BINARY = 'ask for it as binary: "parameters": {"binary_data": true} in the entry of "outputs"'


def _dtype(name: str, datatype: str) -> np.dtype[Any]:
    if datatype not in DATATYPES:
        reason = "BF16 is not supported: send FP32" if datatype == "BF16" else f"{datatype[:40]!r} is not a datatype"
        raise InputError(f"tensor {name!r}: {reason}", hint=f"known: {', '.join(DATATYPES)}")
    return DATATYPES[datatype]


def _wrong(name: str, datatype: str, wanted: str) -> InputError:
    return InputError(f"tensor {name!r} is {datatype} and must hold {wanted} only", hint="check data and datatype")


def _flat(name: str, shape: tuple[int, ...], data: object) -> list[Any]:
    if not isinstance(data, list):
        raise InputError(f"tensor {name!r}: data must be a list", hint="a flat list, or lists nested as the shape")
    values = data
    if values and isinstance(values[0], list):
        for depth, size in enumerate(shape):
            lists = [data] if depth == 0 else values
            if not all(isinstance(part, list) and len(part) == size for part in lists):
                raise InputError(
                    f"tensor {name!r}: the lists are not nested as shape {show_shape(shape)} says (axis {depth})",
                    hint="send flat data in row-major order, or one list per axis",
                )
            values = list(chain.from_iterable(lists))
    if len(values) != math.prod(shape):
        raise InputError(
            f"tensor {name!r} has {len(values)} values, shape {show_shape(shape)} has {math.prod(shape)}",
            hint="shape and data must agree; the batch axis counts",
        )
    return values


def _floats(name: str, datatype: str, dtype: np.dtype[Any], values: list[Any], kinds: set[type]) -> NDArray[Any]:
    if not kinds <= {int, float}:
        raise _wrong(name, datatype, "numbers")
    with np.errstate(over="ignore"):
        array = np.array(values, np.float64).astype(dtype, copy=False)
    if not np.isfinite(array).all():
        raise InputError(
            f"tensor {name!r} holds numbers that {datatype} cannot express", hint="use FP64, or scale them"
        )
    return array


def _integers(name: str, datatype: str, dtype: np.dtype[Any], values: list[Any], kinds: set[type]) -> NDArray[Any]:
    if not kinds <= {int}:
        raise _wrong(name, datatype, "integers")
    limits = np.iinfo(dtype)
    if values and (min(values) < limits.min or max(values) > limits.max):
        raise InputError(
            f"tensor {name!r} holds integers outside {limits.min}..{limits.max}",
            hint=f"that is the range of {datatype}",
        )
    return np.array(values, dtype)


def _objects(items: list[bytes]) -> NDArray[Any]:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def _split(name: str, count: int, data: memoryview) -> NDArray[Any]:
    if count * _LENGTH.size > len(data):
        raise InputError(
            f"tensor {name!r} has {len(data)} bytes, too few for {count} BYTES elements",
            hint="each element is a 4-byte little-endian length and then its bytes",
        )
    items: list[bytes] = []
    place = 0
    for _ in range(count):
        start = place + _LENGTH.size
        end = start + _LENGTH.unpack_from(data, place)[0] if start <= len(data) else start
        if end > len(data):
            raise InputError(f"tensor {name!r}: element {len(items)} reaches beyond the end", hint="check the lengths")
        items.append(bytes(data[start:end]))
        place = end
    if place != len(data):
        raise InputError(
            f"tensor {name!r} has {len(data) - place} bytes too many", hint="check shape and binary_data_size"
        )
    return _objects(items)
