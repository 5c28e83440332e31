"""Tiny trainable models, samples they can learn, and opened training sessions."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converters.training.artifact import TrainingGraph
from edgert.backends.base import TrainingSession
from edgert.backends.onnxruntime import plugin
from edgert.samples import Samples
from edgert.values import TensorSpec

__all__ = ["CLASSES", "around", "digits", "graph_of", "opened", "stripes"]

CLASSES = 3
_FEATURES = 6


def around(
    shape: tuple[int, ...],
    nodes: Sequence[onnx.NodeProto],
    stored: Mapping[str, NDArray[Any]] | None = None,
    *,
    opset: int = 18,
) -> onnx.ModelProto:
    """A network with `nodes` in the middle, so that their input has a gradient and their output has an effect.

    Input ``x`` [N, 6] - Gemm - ``a`` [N, *shape] - `nodes` - ``b`` - flattened - MatMul - output ``scores`` [N, 3].

    Args:
        stored: initializers that `nodes` use.
    """
    random = np.random.default_rng(5)
    out = _width(shape, nodes, stored or {}, opset)
    weights: dict[str, NDArray[Any]] = {
        "first": random.standard_normal((_FEATURES, prod(shape))).astype(np.float32),
        "last": (random.standard_normal((out, CLASSES)) / np.sqrt(out)).astype(np.float32),
        "target": np.array([-1, *shape], np.int64),
        **(stored or {}),
    }
    return graph_of(
        [
            helper.make_node("Gemm", ["x", "first"], ["wide"]),
            helper.make_node("Reshape", ["wide", "target"], ["a"]),
            *nodes,
            helper.make_node("Flatten", ["b"], ["flat"]),
            helper.make_node("MatMul", ["flat", "last"], ["scores"]),
        ],
        weights,
        opset=opset,
    )


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    stored: Mapping[str, NDArray[Any]],
    *,
    image: tuple[str, Sequence[int | str]] = ("x", ("N", _FEATURES)),
    output: tuple[str, Sequence[int | str]] = ("scores", ("N", CLASSES)),
    opset: int = 18,
) -> onnx.ModelProto:
    """A model of one input and one output."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(image[0], TensorProto.FLOAT, list(image[1]))],
        [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, list(output[1]))],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10
    return model


def _width(
    shape: tuple[int, ...], nodes: Sequence[onnx.NodeProto], stored: Mapping[str, NDArray[Any]], opset: int
) -> int:
    """How many numbers per sample `nodes` give."""
    model = graph_of(nodes, stored, image=("a", (1, *shape)), output=("b", ()), opset=opset)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    return prod(dim.dim_value for dim in inferred.graph.output[0].type.tensor_type.shape.dim)


def opened(made: TrainingGraph, folder: Path) -> TrainingSession:
    """A session of a training graph."""
    path = folder / "train.onnx"
    path.write_bytes(made.model.SerializeToString())
    return plugin.open_training(path, made.training)


def stripes(count: int, *, seed: int = 0) -> tuple[Samples, tuple[TensorSpec, ...]]:
    """Images [count, 1, 8, 8] with one bright band, at one of three heights, in noise: a task for a small network."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    images = random.uniform(0, 0.4, (count, 1, 8, 8)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        image[0, 1 + 2 * label : 3 + 2 * label] += 0.6
    return Samples({"image": images}, labels), (TensorSpec("image", "float32", (None, 1, 8, 8)),)


def digits(first: int, last: int) -> Samples:
    """Handwritten digits of the bundled set, shuffled once, inputs 0..1."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))[first:last]
    image = (images[order] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return Samples({"image": image}, labels[order].astype(np.int64))
