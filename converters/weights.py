"""Putting trained weights into a graph, by initializer name."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from converters import graph
from edgert.errors import SamplesError
from edgert.samples import load_arrays

__all__ = ["put"]

_HINT = "weights go by initializer name; `edgert unpack` writes such a file"


def put(model: onnx.ModelProto, path: Path) -> None:
    """Replace initializers of `model`, in place, by the arrays of the ``.npz`` file at `path`.

    Initializers that the file does not name keep their values.

    Raises:
        SamplesError: the file cannot be read, names something that is no float32 initializer, or holds a wrong shape,
            a wrong type or values that are not finite.
    """
    arrays = load_arrays(path)
    if not arrays:
        raise SamplesError(f"{path} holds no weights", hint=_HINT)
    stored = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    for name, value in arrays.items():
        if name not in stored:
            raise SamplesError(
                f"{path}: the model has no float32 weight named {name[:80]!r}",
                hint=_HINT,
            )
        have = graph.array(stored[name])
        if value.dtype != np.float32 or value.shape != have.shape:
            raise SamplesError(
                f"{path}: weight {name[:80]!r} is {value.dtype} {value.shape}, the model's is float32 {have.shape}",
                hint="the weights belong to another model",
            )
        if not np.isfinite(value).all():
            raise SamplesError(
                f"{path}: weight {name[:80]!r} holds NaN or infinite values", hint="the training diverged"
            )
        stored[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))
