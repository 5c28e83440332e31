"""A training graph with everything that belongs to it, and the way of trained weights back into the inference graph."""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgert.errors import ModelError
from edgert.manifest import Training
from edgert.values import Weights

__all__ = ["TrainingGraph", "with_weights"]


@dataclass(frozen=True, slots=True)
class TrainingGraph:
    """A training graph, how to feed it, and where it starts.

    Args:
        model: holds no weights.
        weights: the trainable parameters as they are in `source`.
        source: the inference graph that it was made from.
    """

    model: onnx.ModelProto
    training: Training
    weights: Weights
    source: onnx.ModelProto


def with_weights(model: onnx.ModelProto, weights: Weights) -> onnx.ModelProto:
    """A copy of `model` with the initializers named in `weights` replaced.

    Raises:
        ModelError: the model has no initializer of that name, or it has another shape or type.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    places = {tensor.name: tensor for tensor in copy.graph.initializer}
    for name, value in weights.items():
        place = places.get(name)
        if place is None:
            raise ModelError(f"the model has no initializer {name!r}", hint="the weights belong to another model")
        if tuple(place.dims) != value.shape or place.data_type != TensorProto.FLOAT or value.dtype != np.float32:
            raise ModelError(
                f"initializer {name!r} has shape {tuple(place.dims)}, the weights have {value.shape} {value.dtype}",
                hint="the weights belong to another model",
            )
        place.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return copy
