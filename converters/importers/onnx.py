"""ONNX files, with their external data; says the real reason when one cannot be read."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from converters import external, graph
from edgert.errors import ModelError

__all__ = ["plugin"]

_LFS = b"version https://git-lfs.github.com/spec/"
_OTHERS = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF\r\n\x1a\n": "a Keras HDF5 file",
    b"\x7fELF": "a program",
    b"<!DO": "a web page",
    b"<htm": "a web page",
}


class _Onnx:
    suffixes = (".onnx",)

    def accepts(self, path: Path) -> bool:
        return path.suffix.lower() in self.suffixes

    def load(self, path: Path) -> onnx.ModelProto:
        model = _parse(path, _read(path))
        external.load(model, path)
        return model


def _read(path: Path) -> bytes:
    try:
        size_bytes = path.stat().st_size
        if size_bytes >= graph.PROTOBUF_LIMIT_BYTES:
            raise ModelError(f"{path} is larger than 2 GiB", hint="store its weights as external data")
        data = path.read_bytes()
    except FileNotFoundError as e:
        raise ModelError(f"there is no file {path}", hint="check the path") from e
    except OSError as e:
        raise ModelError(f"{path} cannot be read: {e.strerror or e}", hint="check the path and its permissions") from e
    if not data:
        raise ModelError(f"{path} is empty", hint="copy or export it again")
    if data.startswith(_LFS):
        raise ModelError(f"{path} is a Git LFS pointer, not the model itself", hint="run `git lfs pull` and try again")
    return data


def _parse(path: Path, data: bytes) -> onnx.ModelProto:
    model = onnx.ModelProto()
    kind = next((kind for start, kind in _OTHERS.items() if data.startswith(start)), "")
    if data[4:8] == b"TFL3":
        kind = "a TFLite file"
    if kind:
        raise ModelError(f"{path} is not an ONNX model but {kind}", hint="export the model to ONNX")
    try:
        model.ParseFromString(data)
    except DecodeError as e:
        raise ModelError(
            f"{path} is not a complete ONNX model: truncated, damaged, or another format",
            hint="copy or export it again",
        ) from e
    if not model.HasField("graph") or not model.ir_version or not model.graph.output:
        raise ModelError(f"{path} is not an ONNX model: it holds no graph with outputs", hint="export it again")
    if not model.graph.node:
        raise ModelError(f"{path} holds a graph without operators", hint="export it again")
    return model


plugin = _Onnx()
