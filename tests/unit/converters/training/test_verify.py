"""The gradient check must be able to fail: every small change of the artifact has to be noticed."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import pytest

from converters.training.artifact import TrainingGraph
from converters.training.build import build
from converters.training.verify import check
from edgert.errors import CheckError
from tests.support import models
from tests.support.training import around

_SWAPS = {
    "Add": "Sub", "Div": "Mul", "Equal": "Less", "Exp": "Abs", "Mul": "Add", "Neg": "Identity",
    "Sign": "Tanh", "Sub": "Add",
}  # fmt: skip


def _changed(made: TrainingGraph) -> Iterator[tuple[str, TrainingGraph]]:
    """The same graph with one arithmetic node replaced, for every such node."""
    for i, node in enumerate(made.model.graph.node):
        if node.op_type in _SWAPS:
            copy = onnx.ModelProto()
            copy.CopyFrom(made.model)
            copy.graph.node[i].op_type = _SWAPS[node.op_type]
            yield f"{node.name} -> {_SWAPS[node.op_type]}", replace(made, model=copy)


def _with_attribute(made: TrainingGraph, op_type: str, name: str, value: float) -> TrainingGraph:
    """The same graph with one attribute of the last node of a kind changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(made.model)
    node = [node for node in copy.graph.node if node.op_type == op_type][-1]
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])
    return replace(made, model=copy)


def test_every_changed_arithmetic_node_is_noticed() -> None:
    unnoticed = []
    changes = dict(_changed(build(models.mlp(), batch_size=4)))
    assert len(changes) > 20
    for change, broken in changes.items():
        try:
            check(broken, rows=3)
        except CheckError:
            continue
        unnoticed.append(change)
    assert unnoticed == []


def test_a_changed_convolution_is_noticed_and_the_parameter_named() -> None:
    nodes = [onnx.helper.make_node("Conv", ["a", "k"], ["b"], pads=[1, 1, 1, 1])]
    made = build(around((2, 4, 4), nodes, {"k": np.random.default_rng(0).random((3, 2, 3, 3), np.float32)}))
    moved = made.model.graph
    pads = next(tensor for tensor in moved.initializer if list(onnx.numpy_helper.to_array(tensor).shape) == [8])
    shifted = np.array([0, 0, 0, 1, 0, 0, 2, 1], np.int64)
    pads.CopyFrom(onnx.numpy_helper.from_array(shifted, pads.name))
    with pytest.raises(CheckError, match="gradient of 'k' is wrong"):
        check(made)


def test_a_gradient_that_is_slightly_off_is_noticed() -> None:
    broken = _with_attribute(build(models.mlp()), "Gemm", "alpha", 1.001)
    with pytest.raises(CheckError, match="wrong by"):
        check(broken)


def test_a_graph_of_another_model_is_noticed() -> None:
    made = build(models.mlp())
    other = models.mlp()
    other.graph.node[1].op_type = "Sigmoid"
    with pytest.raises(CheckError, match="loss"):
        check(replace(made, source=other))


def test_a_graph_that_the_runtime_cannot_open_is_reported() -> None:
    made = build(models.mlp())
    made.model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(CheckError, match="cannot open"):
        check(made)


def test_the_answer_is_the_same_each_time() -> None:
    made = build(models.cnn())
    assert check(made) == check(made)
    assert check(made) < 2e-6


def test_a_batch_of_one_can_be_checked() -> None:
    assert check(build(models.mlp(), batch_size=1)) < 2e-6
