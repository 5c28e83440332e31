"""Gradients of pooling.

The gradient of a maximum goes to one value only, the one that the forward pass took (`Indices`), also when others tie.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray

from converters.training.rules.base import Family, Rule, Writer, attributes
from converters.training.window import Window
from edgert.errors import ModelError

__all__ = ["plugin"]

_Grads = Sequence[str | None]


def _max_pool(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    if attributes(node).get("storage_order", 0):
        raise ModelError("MaxPool with storage_order=1 has no gradient rule")
    if len(node.output) == 1:
        node.output.append(w.fresh(f"{node.output[0]}.indices"))
    shape = w.shape(node.input[0])
    zero = onnx.numpy_helper.from_array(np.zeros(1, np.float32))
    zeros = w.add("ConstantOfShape", w.ints([prod(shape)]), value=zero)
    places = w.reshape(node.output[1], [-1])
    scattered = w.add("ScatterElements", zeros, places, w.reshape(grad, [-1]), axis=0, reduction="add")
    return [w.reshape(scattered, shape)]


def _average_pool(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    attrs = attributes(node)
    size = tuple(attrs["kernel_shape"])
    batch, channels, *source = w.shape(node.input[0])
    result = w.shape(node.output[0])[2:]
    window = Window.of(node, size, tuple(source), result)
    counts = _counts(window, include_padding=bool(attrs.get("count_include_pad", 0)), pads=attrs.get("pads"))
    folded = w.reshape(grad, [batch * channels, 1, *result])
    if counts.min() == counts.max():
        kernel = np.full((1, 1, *size), 1 / counts.flat[0], np.float32)
    else:
        folded = w.add("Mul", folded, w.constant((1 / counts).astype(np.float32)[None, None]))
        kernel = np.ones((1, 1, *size), np.float32)
    back = w.add("ConvTranspose", folded, w.constant(kernel), **window.transposed())
    return [w.reshape(back, w.shape(node.input[0]))]


def _counts(window: Window, *, include_padding: bool, pads: Sequence[int] | None) -> NDArray[np.float64]:
    """How many values each window averages: those inside the input, or inside the input with its declared padding."""
    per_axis = []
    for axis, source in enumerate(window.source):
        begin = window.begin[axis]
        declared = pads[len(window.size) + axis] if pads else max(0, window.end[axis])
        low, high = (-begin, source + declared) if include_padding else (0, source)
        starts = np.arange(window.result[axis]) * window.stride[axis] - begin
        taps = starts[:, None] + np.arange(window.size[axis]) * window.dilation[axis]
        per_axis.append(((taps >= low) & (taps < high)).sum(axis=1).astype(np.float64))
    counts: NDArray[np.float64] = per_axis[0]
    for more in per_axis[1:]:
        counts = counts[..., None] * more
    return counts


def _global_average_pool(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    shape = w.shape(node.input[0])
    return [w.add("Expand", w.add("Mul", grad, w.scalar(1 / prod(shape[2:]))), w.ints(shape))]


plugin = Family(
    {
        "AveragePool": Rule(_average_pool),
        "GlobalAveragePool": Rule(_global_average_pool),
        "MaxPool": Rule(_max_pool),
    }
)
