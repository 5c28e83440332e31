"""Gradients of operators that work element by element, with broadcasting.

At a kink the gradient is 0: `Relu` at 0, `Clip` at its limits. `Sign` is used instead of a comparison and `Where`
because it costs less on ONNX Runtime's CPU kernels.
"""

from collections.abc import Sequence

import onnx

from converters.training.rules.base import Family, Rule, Writer, attributes, unbroadcast

__all__ = ["plugin"]

_Grads = Sequence[str | None]


def _both(w: Writer, node: onnx.NodeProto, left: str, right: str) -> _Grads:
    out = w.shape(node.output[0])
    return [
        unbroadcast(w, left, out, w.shape(node.input[0])),
        unbroadcast(w, right, out, w.shape(node.input[1])),
    ]


def _add(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    return _both(w, node, grad, grad)


def _sub(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    return _both(w, node, grad, w.add("Neg", grad))


def _mul(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    a, b = node.input
    return _both(w, node, w.add("Mul", grad, b), w.add("Mul", grad, a))


def _div(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    left = w.add("Div", grad, node.input[1])
    return _both(w, node, left, w.add("Neg", w.add("Mul", left, node.output[0])))


def _neg(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    return [w.add("Neg", grad)]


def _relu(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    return [w.add("Mul", grad, w.add("Sign", node.output[0]))]


def _leaky_relu(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    alpha = float(attributes(node).get("alpha", 0.01))
    positive = w.add("Sign", w.add("Relu", node.input[0]))
    slope = w.add("Add", w.add("Mul", positive, w.scalar(1 - alpha)), w.scalar(alpha))
    return [w.add("Mul", grad, slope)]


def _sigmoid(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    y = node.output[0]
    return [w.add("Mul", grad, w.add("Sub", y, w.add("Mul", y, y)))]


def _tanh(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    y = node.output[0]
    return [w.add("Mul", grad, w.add("Sub", w.scalar(1.0), w.add("Mul", y, y)))]


def _clip(w: Writer, node: onnx.NodeProto, grad: str) -> _Grads:
    y = node.output[0]
    low, high = ([*node.input, "", ""])[1:3]
    if low:
        grad = w.add("Mul", grad, w.add("Sign", w.add("Sub", y, low)))
    if high:
        grad = w.add("Mul", grad, w.add("Sign", w.add("Sub", high, y)))
    return [grad]


plugin = Family(
    {
        "Add": Rule(_add, inputs=None, arithmetic=True),
        "Sub": Rule(_sub, inputs=None, arithmetic=True),
        "Mul": Rule(_mul, inputs=None, arithmetic=True),
        "Div": Rule(_div, inputs=None, arithmetic=True),
        "Neg": Rule(_neg),
        "Relu": Rule(_relu),
        "LeakyRelu": Rule(_leaky_relu),
        "Sigmoid": Rule(_sigmoid),
        "Tanh": Rule(_tanh),
        "Clip": Rule(_clip),
    }
)
