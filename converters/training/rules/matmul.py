"""Gradients of matrix products."""

from collections.abc import Sequence
from math import prod

import onnx

from converters.training.rules.base import Family, Rule, Shape, Writer, attributes, unbroadcast
from edgert.errors import ModelError

__all__ = ["plugin"]

_Grads = Sequence[str | None]


def _matmul(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    a, b = node.input
    a_shape, b_shape, out = w.shape(a), w.shape(b), w.shape(node.output[0])
    if min(len(a_shape), len(b_shape)) < 2:
        raise ModelError(
            f"MatMul with a vector of shape {min(a_shape, b_shape, key=len)} has no gradient rule",
            hint="give the vector a second axis of size 1",
        )
    da = w.add("MatMul", grad, _swapped(w, b, b_shape))
    if len(b_shape) == 2:
        rows = prod(a_shape[:-1])
        folded = _folded(w, a, a_shape, rows), _folded(w, grad, out, rows)
        db = w.add("Gemm", *folded, transA=1)
        return [unbroadcast(w, da, (*out[:-1], a_shape[-1]), a_shape), db]
    db = w.add("MatMul", _swapped(w, a, a_shape), grad)
    return [
        unbroadcast(w, da, (*out[:-1], a_shape[-1]), a_shape),
        unbroadcast(w, db, (*out[:-2], *b_shape[-2:]), b_shape),
    ]


def _swapped(w: Writer, name: str, shape: Shape) -> str:
    axes = list(range(len(shape)))
    return w.transpose(name, [*axes[:-2], axes[-1], axes[-2]])


def _folded(w: Writer, name: str, shape: Shape, rows: int) -> str:
    return name if len(shape) == 2 else w.reshape(name, [rows, shape[-1]])


def _gemm(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    attrs = attributes(node)
    alpha, beta = float(attrs.get("alpha", 1.0)), float(attrs.get("beta", 1.0))
    trans_a, trans_b = int(attrs.get("transA", 0)), int(attrs.get("transB", 0))
    a, b = node.input[:2]
    if trans_a:
        da = w.add("Gemm", b, grad, alpha=alpha, transA=trans_b, transB=1)
    else:
        da = w.add("Gemm", grad, b, alpha=alpha, transB=1 - trans_b)
    if trans_b:
        db = w.add("Gemm", grad, a, alpha=alpha, transA=1, transB=trans_a)
    else:
        db = w.add("Gemm", a, grad, alpha=alpha, transA=1 - trans_a)
    grads: list[str | None] = [da, db]
    if len(node.input) > 2 and node.input[2]:
        scaled = grad if beta == 1.0 else w.add("Mul", grad, w.scalar(beta))
        grads.append(unbroadcast(w, scaled, w.shape(node.output[0]), w.shape(node.input[2])))
    return grads


plugin = Family({"MatMul": Rule(_matmul, inputs=None), "Gemm": Rule(_gemm, inputs=None)})
