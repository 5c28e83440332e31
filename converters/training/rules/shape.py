"""Gradients of operators that only move values."""

from collections.abc import Sequence

import numpy as np
import onnx

from converters.training.rules.base import Family, Rule, Writer, attributes
from edgert.errors import ModelError

__all__ = ["plugin"]

_Grads = Sequence[str | None]


def _reshaped(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    return [w.reshape(grad, w.shape(node.input[0]))]


def _transpose(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    rank = len(w.shape(node.input[0]))
    perm = attributes(node).get("perm", list(reversed(range(rank))))
    return [w.transpose(grad, [int(i) for i in np.argsort(perm)])]


def _concat(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    axis = int(attributes(node)["axis"])
    sizes = [w.shape(name)[axis] for name in node.input]
    if len(sizes) == 1:
        return [grad]
    return w.add_many("Split", grad, w.ints(sizes), count=len(sizes), axis=axis)


def _pad(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    shape = w.shape(node.input[0])
    pads = w.value(node.input[1])
    axes = w.value(node.input[3]) if len(node.input) > 3 and node.input[3] else np.arange(len(shape))
    if attributes(node).get("mode", "constant") != "constant" or pads is None or axes is None:
        raise ModelError("Pad has a gradient rule only with mode 'constant' and constant pads")
    starts = [int(pad) for pad in pads[: len(axes)]]
    ends = [start + shape[int(axis)] for start, axis in zip(starts, axes, strict=True)]
    if min(*starts, *(int(pad) for pad in pads)) < 0:
        raise ModelError("Pad with negative pads has no gradient rule", hint="use Slice to cut")
    return [w.add("Slice", grad, w.ints(starts), w.ints(ends), w.ints([int(axis) for axis in axes]))]


plugin = Family(
    {
        "Concat": Rule(_concat, inputs=None),
        "Flatten": Rule(_reshaped),
        "Pad": Rule(_pad),
        "Reshape": Rule(_reshaped),
        "Squeeze": Rule(_reshaped),
        "Transpose": Rule(_transpose),
        "Unsqueeze": Rule(_reshaped),
    }
)
