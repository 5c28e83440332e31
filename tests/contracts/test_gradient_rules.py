"""Every gradient rule, alone in a small network, against central differences of a float64 evaluation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.helper import make_node

from converters.training.build import build
from converters.training.rules.base import Family
from converters.training.verify import check
from edgert import plugins
from tests.support.training import around

_PACKAGE = "converters.training.rules"
_RANDOM = np.random.default_rng(3)
_Case = tuple[tuple[int, ...], Sequence[onnx.NodeProto], dict[str, NDArray[Any]]]


def _w(*shape: int) -> NDArray[np.float32]:
    return _RANDOM.standard_normal(shape).astype(np.float32)


def _ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def _unary(op_type: str, shape: tuple[int, ...] = (2, 3), **attrs: Any) -> _Case:
    return shape, [make_node(op_type, ["a"], ["b"], **attrs)], {}


def _stored(op_type: str, shape: tuple[int, ...], *values: NDArray[Any], **attrs: Any) -> _Case:
    names = [f"s{i}" for i in range(len(values))]
    return shape, [make_node(op_type, ["a", *names], ["b"], **attrs)], dict(zip(names, values, strict=True))


def _pair(op_type: str, shape: tuple[int, ...] = (2, 3), **attrs: Any) -> _Case:
    """Both operands depend on parameters; the second is kept away from 0."""
    nodes = [
        make_node("Sigmoid", ["a"], ["s"]),
        make_node("Add", ["s", "half"], ["c"]),
        make_node(op_type, ["a", "c"], ["b"], **attrs),
    ]
    return shape, nodes, {"half": np.array(0.5, np.float32)}


def _reversed(op_type: str, shape: tuple[int, ...], value: NDArray[Any], **attrs: Any) -> _Case:
    """The parameter is the first operand."""
    return shape, [make_node(op_type, ["s", "a"], ["b"], **attrs)], {"s": value}


_CASES: dict[str, dict[str, _Case]] = {
    "Add": {
        "bias": _stored("Add", (2, 3), _w(3)),
        "channels": _stored("Add", (3, 2, 2), _w(3, 1, 1)),
        "batch": _stored("Add", (2, 3), _w(1, 2, 3)),
        "wider operand": _stored("Add", (1, 3), _w(4, 3)),
        "branches": _pair("Add"),
        "itself": ((2, 3), [make_node("Add", ["a", "a"], ["b"])], {}),
    },
    "Sub": {"bias": _stored("Sub", (2, 3), _w(2, 1)), "branches": _pair("Sub"), "first": _reversed("Sub", (3,), _w(3))},
    "Mul": {
        "scale": _stored("Mul", (3, 2, 2), _w(3, 1, 1)),
        "branches": _pair("Mul"),
        "number": _stored("Mul", (3,), _w()),
    },
    "Div": {"branches": _pair("Div"), "scale": _stored("Div", (2, 3), _w(3) ** 2 + 0.5)},
    "Neg": {"plain": _unary("Neg")},
    "Relu": {"plain": _unary("Relu")},
    "LeakyRelu": {"plain": _unary("LeakyRelu", alpha=0.2), "default": _unary("LeakyRelu")},
    "Sigmoid": {"plain": _unary("Sigmoid")},
    "Tanh": {"plain": _unary("Tanh")},
    "Clip": {
        "both": _stored("Clip", (2, 3), np.float32(-0.5), np.float32(1.5)),
        "low": _stored("Clip", (2, 3), np.array(0.25, np.float32)),
        "none": _unary("Clip"),
        "high": ((4,), [make_node("Clip", ["a", "", "m"], ["b"])], {"m": np.array(0.5, np.float32)}),
    },
    "MatMul": {
        "weights": _stored("MatMul", (5,), _w(5, 4)),
        "rows": _stored("MatMul", (3, 5), _w(5, 4)),
        "stack": _stored("MatMul", (2, 3, 5), _w(2, 5, 4)),
        "repeated": _stored("MatMul", (2, 3, 5), _w(1, 2, 5, 4)),
        "weights first": _reversed("MatMul", (5, 2), _w(3, 5)),
        "branches": ((4, 4), [make_node("Tanh", ["a"], ["t"]), make_node("MatMul", ["a", "t"], ["b"])], {}),
    },
    "Gemm": {
        f"A{trans_a} B{trans_b}": (
            (5,),
            [
                *([make_node("Transpose", ["a"], ["t"])] if trans_a else []),
                make_node(
                    "Gemm", ["t" if trans_a else "a", "w", "c"], ["b"],
                    transA=trans_a, transB=trans_b, alpha=0.5, beta=1.5,
                ),
            ],
            {"w": _w(4, 5) if trans_b else _w(5, 4), "c": _w(4)},
        )
        for trans_a in (0, 1) for trans_b in (0, 1)
    },
    "Conv": {
        "same": _stored("Conv", (2, 5, 5), _w(3, 2, 3, 3), _w(3), pads=[1, 1, 1, 1]),
        "valid": _stored("Conv", (2, 5, 4), _w(3, 2, 3, 2)),
        "one by one": _stored("Conv", (2, 3, 3), _w(4, 2, 1, 1), _w(4)),
        "strided one by one": _stored("Conv", (2, 5, 5), _w(4, 2, 1, 1), strides=[2, 2]),
        "stride leaves values over": _stored("Conv", (2, 6, 7), _w(3, 2, 3, 3), strides=[2, 3]),
        "strided with pads": _stored("Conv", (2, 7, 7), _w(3, 2, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
        "uneven pads": _stored("Conv", (1, 5, 5), _w(2, 1, 3, 3), pads=[0, 1, 2, 1]),
        "more pad than kernel": _stored("Conv", (1, 4, 4), _w(2, 1, 2, 2), pads=[2, 2, 2, 2]),
        "dilated": _stored("Conv", (2, 7, 7), _w(3, 2, 3, 3), dilations=[2, 2], pads=[2, 2, 2, 2]),
        "dilated and strided": _stored("Conv", (2, 8, 8), _w(3, 2, 3, 3), dilations=[2, 1], strides=[2, 2]),
        "depthwise": _stored("Conv", (4, 5, 5), _w(4, 1, 3, 3), _w(4), group=4, pads=[1, 1, 1, 1]),
        "depthwise strided": _stored("Conv", (4, 6, 6), _w(4, 1, 3, 3), group=4, strides=[2, 2], pads=[1, 1, 1, 1]),
        "depthwise multiplied": _stored("Conv", (2, 5, 5), _w(6, 1, 3, 3), group=2, dilations=[2, 1]),
        "groups": _stored("Conv", (4, 5, 5), _w(6, 2, 3, 3), _w(6), group=2, pads=[1, 1, 1, 1]),
        "same upper": _stored("Conv", (2, 6, 6), _w(3, 2, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
        "same lower": _stored("Conv", (2, 6, 6), _w(3, 2, 2, 2), auto_pad="SAME_LOWER"),
        "one axis": _stored("Conv", (2, 9), _w(3, 2, 4), _w(3), strides=[2], pads=[1, 2]),
    },
    "MaxPool": {
        "tiles": _unary("MaxPool", (2, 4, 4), kernel_shape=[2, 2], strides=[2, 2]),
        "overlap": _unary("MaxPool", (2, 5, 5), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        "rounded up": _unary("MaxPool", (1, 5, 5), kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        "dilated": _unary("MaxPool", (1, 6, 6), kernel_shape=[2, 2], dilations=[2, 2]),
        "one axis": _unary("MaxPool", (2, 8), kernel_shape=[3], strides=[2]),
    },
    "AveragePool": {
        "tiles": _unary("AveragePool", (2, 4, 4), kernel_shape=[2, 2], strides=[2, 2]),
        "pads left out": _unary("AveragePool", (2, 5, 5), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        "pads counted": _unary("AveragePool", (2, 5, 5), kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        "leaves values over": _unary("AveragePool", (2, 6, 5), kernel_shape=[3, 2], strides=[2, 2]),
        "same upper": _unary("AveragePool", (2, 5, 5), kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
        "rounded up": _unary("AveragePool", (1, 5, 5), kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    },
    "GlobalAveragePool": {"plain": _unary("GlobalAveragePool", (3, 4, 5))},
    "ReduceMean": {
        "places": _stored("ReduceMean", (3, 4, 5), _ints(2, 3), keepdims=0),
        "kept": _stored("ReduceMean", (3, 4), _ints(-1)),
    },
    "ReduceSum": {
        "one axis": _stored("ReduceSum", (3, 4), _ints(1), keepdims=0),
        "several": _stored("ReduceSum", (3, 4), _ints(2, 1)),
    },
    "BatchNormalization": {
        "frozen": _stored("BatchNormalization", (3, 4, 4), _w(3), _w(3), _w(3), _w(3) ** 2 + 0.1, epsilon=1e-3),
        "flat": _stored("BatchNormalization", (4,), _w(4), _w(4), _w(4), _w(4) ** 2 + 0.1),
    },
    "Concat": {
        "three": (
            (2, 4),
            [
                make_node("Tanh", ["a"], ["t"]),
                make_node("MatMul", ["a", "w"], ["m"]),
                make_node("Concat", ["a", "m", "t"], ["b"], axis=-1),
            ],
            {"w": _w(4, 3)},
        ),
        "channels": ((2, 3, 3), [make_node("Relu", ["a"], ["r"]), make_node("Concat", ["r", "a"], ["b"], axis=1)], {}),
        "one": ((2, 3), [make_node("Concat", ["a"], ["b"], axis=1)], {}),
    },
    "Flatten": {
        "plain": _unary("Flatten", (2, 3)),
        "rows": (
            (2, 3),
            [make_node("Flatten", ["a"], ["f"], axis=-1), make_node("Reshape", ["f", "six"], ["b"])],
            {"six": _ints(-1, 6)},
        ),
    },
    "Reshape": {
        "plain": _stored("Reshape", (2, 6), _ints(-1, 3, 4)),
        "kept sizes": _stored("Reshape", (2, 6), _ints(0, 0, 3, 2)),
    },
    "Squeeze": {"axes": _stored("Squeeze", (1, 3, 1), _ints(1, 3)), "all": _unary("Squeeze", (1, 3, 1))},
    "Unsqueeze": {"axes": _stored("Unsqueeze", (2, 3), _ints(1, -1))},
    "Transpose": {"perm": _unary("Transpose", (2, 3, 4), perm=[0, 3, 1, 2])},
    "Pad": {
        "border": _stored("Pad", (1, 3, 3), _ints(0, 0, 1, 2, 0, 0, 0, 1)),
        "axes": _stored("Pad", (2, 3), _ints(1, 2), np.array(0.5, np.float32), _ints(2)),
    },
}  # fmt: skip

_FAMILIES = plugins.names(_PACKAGE)


def _operators(name: str) -> list[str]:
    family: Family = plugins.load(_PACKAGE, name)
    return sorted(family.rules)


@pytest.mark.parametrize("family", _FAMILIES)
def test_every_operator_of_the_family_has_a_case(family: str) -> None:
    assert [name for name in _operators(family) if name not in _CASES] == []


@pytest.mark.parametrize(
    ("op_type", "case"),
    [
        pytest.param(op_type, case, id=f"{family}: {op_type} {case}")
        for family in _FAMILIES
        for op_type in _operators(family)
        for case in _CASES.get(op_type, {})
    ],
)
def test_gradients_are_those_of_a_float64_reference(op_type: str, case: str) -> None:
    shape, nodes, stored = _CASES[op_type][case]
    assert check(build(around(shape, nodes, stored), batch_size=4), rows=3) < 2e-5


def test_a_maximum_that_ties_sends_its_gradient_to_one_value_only() -> None:
    import onnxruntime as ort

    shape, nodes, stored = _CASES["MaxPool"]["tiles"]
    model = around(shape, nodes, stored)
    made = build(model, batch_size=1)
    training = made.training
    feeds: dict[str, Any] = {
        "x": np.ones((1, 6), np.float32),
        "labels": _ints(0),
        "sample_weight": np.ones(1, np.float32),
    }
    feeds |= {name: np.array(0, np.float32) for name in training.scalars}
    feeds |= {"first": np.zeros((6, 32), np.float32), "last": _w(8, 3)}
    feeds |= {f"{name}.velocity": np.zeros_like(feeds[name]) for name in training.parameters}
    session = ort.InferenceSession(made.model.SerializeToString(), providers=["CPUExecutionProvider"])
    (grad,) = session.run(["first.velocity.next"], feeds)
    places = np.count_nonzero(grad[0])
    assert places == 8  # one of four in each of the 2 x 2 x 2 windows
