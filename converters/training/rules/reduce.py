"""Gradients of sums and means over axes."""

from collections.abc import Sequence
from math import prod

import onnx

from converters.training.rules.base import Family, Rule, Writer, attributes
from edgert.errors import ModelError

__all__ = ["plugin"]

_Grads = Sequence[str | None]


def _axes(w: Writer, node: onnx.NodeProto) -> list[int]:
    rank = len(w.shape(node.input[0]))
    if len(node.input) < 2 or not node.input[1]:
        return [] if attributes(node).get("noop_with_empty_axes", 0) else list(range(rank))
    value = w.value(node.input[1])
    if value is None:
        raise ModelError(f"{node.op_type} with computed axes has no gradient rule", hint="make the axes constant")
    if not value.size:
        return [] if attributes(node).get("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(int(axis) % rank for axis in value)


def _spread(w: Writer, node: onnx.NodeProto, grad: str, axes: list[int]) -> str:
    shape = w.shape(node.input[0])
    kept = [1 if axis in axes else size for axis, size in enumerate(shape)]
    return w.add("Expand", w.reshape(grad, kept), w.ints(shape))


def _mean(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    axes = _axes(w, node)
    count = prod(w.shape(node.input[0])[axis] for axis in axes)
    return [_spread(w, node, w.add("Mul", grad, w.scalar(1 / count)), axes)]


def _sum(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    return [_spread(w, node, grad, _axes(w, node))]


plugin = Family({"ReduceMean": Rule(_mean), "ReduceSum": Rule(_sum)})
