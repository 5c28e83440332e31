"""Weights stored beside an ONNX file, taken in only from plain files inside the model's own folder."""

from pathlib import Path, PurePosixPath

import onnx

from converters import graph
from edgert.errors import ModelError

__all__ = ["load"]

_HINT = "external data must be plain files in the model's own folder"


def load(model: onnx.ModelProto, path: Path) -> None:
    """Put the external data of `model`, which was read from `path`, into the tensors themselves.

    Raises:
        ModelError: a file is missing, a link, outside the folder, too short, or named in no sensible way.
    """
    total = 0
    for tensor in graph.tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        data = _read(tensor, path)
        total += len(data)
        if total >= graph.PROTOBUF_LIMIT_BYTES:
            raise ModelError(f"the weights beside {path} exceed 2 GiB", hint="such a model does not fit an edge bundle")
        tensor.raw_data = data
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _read(tensor: onnx.TensorProto, path: Path) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    file = _inside(path.parent, entries.get("location", ""), f"{path}: tensor {tensor.name[:80]!r}")
    who = f"{path}: the external data of tensor {tensor.name[:80]!r}"
    try:
        size_bytes = file.stat().st_size
        offset = _count(entries.get("offset", "0"), who)
        length = _count(entries.get("length", str(max(size_bytes - offset, 0))), who)
        if offset + length > size_bytes:
            raise ModelError(f"{who} ends after the end of {file.name}", hint="copy both files again")
        with file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)
    except OSError as e:
        raise ModelError(f"{who} cannot be read: {e.strerror or e}", hint=_HINT) from e


def _inside(folder: Path, location: str, who: str) -> Path:
    parts = PurePosixPath(location.replace("\\", "/")).parts
    if not parts or "\0" in location:
        raise ModelError(f"{who} names no file for its external data", hint=_HINT)
    if ".." in parts or parts[0].startswith("/") or ":" in parts[0]:
        raise ModelError(f"{who} names external data outside the model's folder: {location[:120]!r}", hint=_HINT)
    file = folder
    for part in parts:
        file = file / part
        if file.is_symlink():
            raise ModelError(f"{who} names a link as external data: {location[:120]!r}", hint=_HINT)
    if not file.is_file():
        raise ModelError(f"{who} needs {location[:120]!r}, which is not there", hint="copy it beside the model")
    return file


def _count(text: str, who: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ModelError(f"{who} has {text[:40]!r} where a number belongs", hint="export the model again")
    return int(text)
