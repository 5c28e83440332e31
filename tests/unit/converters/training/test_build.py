from itertools import pairwise

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.helper import make_node

from converters.training.artifact import with_weights
from converters.training.build import build, check
from edgert.errors import ModelError
from tests.support import models
from tests.support.training import around, graph_of

_RANDOM = np.random.default_rng(0)


def _w(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype(np.float32)


def _names(values: object) -> list[str]:
    return [info.name for info in values]  # type: ignore[attr-defined]


def test_the_graph_has_the_inputs_and_outputs_that_its_description_says() -> None:
    made = build(models.mlp())
    parameters = ("W1", "b1", "W2", "b2")
    assert made.training.parameters == parameters
    assert _names(made.model.graph.input) == [
        "x", "labels", "sample_weight", "lr", "momentum", *parameters, *(f"{name}.velocity" for name in parameters)
    ]  # fmt: skip
    assert _names(made.model.graph.output) == [
        "loss", "correct", *(f"{name}.next" for name in parameters), *(f"{name}.velocity.next" for name in parameters)
    ]  # fmt: skip
    assert made.training.classes == 3
    assert made.training.batch_size == 16


def test_every_shape_at_the_border_is_static_and_no_weight_is_inside() -> None:
    made = build(models.cnn(), batch_size=5)
    for info in (*made.model.graph.input, *made.model.graph.output):
        assert all(dim.HasField("dim_value") for dim in info.type.tensor_type.shape.dim)
    assert not {tensor.name for tensor in made.model.graph.initializer} & set(made.training.parameters)
    assert len(made.model.SerializeToString()) < 20_000


def test_only_standard_operators_of_a_version_that_boxes_open_are_used() -> None:
    made = build(models.cnn())
    assert {node.domain for node in made.model.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in made.model.opset_import] == [("", 18)]
    assert made.model.ir_version == 10


def test_the_same_model_gives_the_same_bytes() -> None:
    assert build(models.cnn()).model.SerializeToString() == build(models.cnn()).model.SerializeToString()


def test_the_given_model_is_left_alone() -> None:
    model = models.cnn()
    before = model.SerializeToString()
    check(build(model))
    assert model.SerializeToString() == before


def test_weights_are_the_initializers_by_name() -> None:
    made = build(models.mlp())
    for name, value in models.mlp_weights().items():
        np.testing.assert_array_equal(made.weights[name], value)


def test_operators_without_a_gradient_rule_are_named() -> None:
    nodes = [make_node("Erf", ["a"], ["e"]), make_node("Softmax", ["e"], ["b"])]
    with pytest.raises(ModelError, match=r"no gradient rule for Erf, Softmax") as caught:
        build(around((2, 3), nodes))
    assert "Conv" in caught.value.hint


def test_an_unknown_operator_that_only_sees_the_input_is_no_obstacle() -> None:
    nodes = [make_node("Erf", ["x"], ["e"]), make_node("MatMul", ["e", "w"], ["scores"])]
    assert build(graph_of(nodes, {"w": _w(6, 3)})).training.parameters == ("w",)


def test_weights_inside_an_operator_without_a_rule_are_not_silently_frozen() -> None:
    nodes = [
        make_node("Einsum", ["x", "w"], ["e"], equation="ni,ij->nj"),
        make_node("MatMul", ["e", "v"], ["scores"]),
    ]
    with pytest.raises(ModelError, match="Einsum"):
        build(graph_of(nodes, {"w": _w(6, 4), "v": _w(4, 3)}))


def test_operators_of_another_domain_are_refused() -> None:
    node = make_node("FusedGemm", ["x", "w"], ["scores"], domain="com.microsoft")
    with pytest.raises(ModelError, match=r"com\.microsoft"):
        build(graph_of([node], {"w": _w(6, 3)}))


def test_a_model_without_weights_has_nothing_to_train() -> None:
    nodes = [make_node("Constant", [], ["w"], value=numpy_helper.from_array(_w(6, 3)))]
    nodes.append(make_node("MatMul", ["x", "w"], ["scores"]))
    with pytest.raises(ModelError, match="nothing to train"):
        build(graph_of(nodes, {}))


def test_a_final_softmax_is_taken_off_and_changes_nothing_else() -> None:
    logits = [make_node("MatMul", ["x", "w"], ["scores"])]
    softmax = [make_node("MatMul", ["x", "w"], ["s"]), make_node("Softmax", ["s"], ["p"], axis=-1)]
    softmax.append(make_node("Identity", ["p"], ["scores"]))
    weights = {"w": _w(6, 3)}
    with_softmax = build(graph_of(softmax, weights))
    plain = build(graph_of(logits, weights))
    operators = [node.op_type for node in plain.model.graph.node]
    assert [node.op_type for node in with_softmax.model.graph.node] == operators
    assert check(with_softmax) < 2e-6


def test_scores_with_axes_of_size_one_are_rows() -> None:
    nodes = [
        make_node("MatMul", ["x", "w"], ["s"]),
        make_node("Reshape", ["s", "shape"], ["scores"]),
    ]
    model = graph_of(nodes, {"w": _w(6, 3), "shape": np.array([-1, 3, 1, 1])}, output=("scores", ("N", 3, 1, 1)))
    assert check(build(model)) < 2e-6


def test_an_output_that_is_no_row_of_scores_is_refused() -> None:
    nodes = [make_node("MatMul", ["x", "w"], ["s"]), make_node("Reshape", ["s", "shape"], ["scores"])]
    model = graph_of(nodes, {"w": _w(6, 6), "shape": np.array([-1, 2, 3])}, output=("scores", ("N", 2, 3)))
    with pytest.raises(ModelError, match="first output has shape"):
        build(model)
    single = graph_of([make_node("MatMul", ["x", "w"], ["scores"])], {"w": _w(6, 1)}, output=("scores", ("N", 1)))
    with pytest.raises(ModelError, match="first output"):
        build(single)


def test_numbers_of_a_formula_and_of_the_normalisation_of_the_input_are_not_trained() -> None:
    nodes = [
        make_node("Sub", ["x", "mean"], ["centred"]),
        make_node("MatMul", ["centred", "w"], ["h"]),
        make_node("Add", ["h", "three"], ["h3"]),
        make_node("Clip", ["h3", "zero", "six"], ["c"]),
        make_node("Mul", ["h", "c"], ["hc"]),
        make_node("Div", ["hc", "six"], ["swish"]),
        make_node("Add", ["swish", "bias"], ["scores"]),
    ]
    numbers = {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)}
    stored = {name: np.array(value, np.float32) for name, value in numbers.items()}
    made = build(graph_of(nodes, {"mean": _w(6), "w": _w(6, 3), "bias": _w(3), **stored}))
    assert made.training.parameters == ("w", "bias")
    assert check(made) < 2e-6


def test_a_weight_that_is_used_twice_gets_the_sum_of_its_gradients() -> None:
    nodes = [
        make_node("MatMul", ["x", "w"], ["h"]),
        make_node("Tanh", ["h"], ["t"]),
        make_node("MatMul", ["t", "w"], ["scores"]),
    ]
    assert check(build(graph_of(nodes, {"w": _w(6, 6)}, output=("scores", ("N", 6))))) < 2e-6


def test_running_statistics_stay_frozen() -> None:
    stored = {"scale": _w(3), "bias": _w(3), "mean": _w(3), "var": _w(3) ** 2}
    nodes = [make_node("BatchNormalization", ["a", *stored], ["b"])]
    made = build(around((3, 2, 2), nodes, stored))
    assert set(made.training.parameters) == {"first", "last", "scale", "bias"}
    assert {"mean", "var"} <= {tensor.name for tensor in made.model.graph.initializer}


def test_dropout_and_identity_do_nothing() -> None:
    nodes = [make_node("Dropout", ["a"], ["d"]), make_node("Identity", ["d"], ["b"])]
    made = build(around((4,), nodes))
    assert not {"Dropout", "Identity"} & {node.op_type for node in made.model.graph.node}
    assert check(made) < 2e-6


def test_shapes_computed_in_the_graph_become_constants() -> None:
    nodes = [
        make_node("Shape", ["a"], ["size"]),
        make_node("Gather", ["size", "zero"], ["batch"]),
        make_node("Unsqueeze", ["batch", "axis"], ["rows"]),
        make_node("Concat", ["rows", "rest"], ["shape"], axis=0),
        make_node("Reshape", ["a", "shape"], ["b"]),
    ]
    stored = {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([-1])}
    made = build(around((2, 3), nodes, stored))
    assert not {"Shape", "Gather"} & {node.op_type for node in made.model.graph.node}
    assert check(made) < 2e-6


def test_a_model_with_a_fixed_batch_of_one_is_given_a_larger_one() -> None:
    nodes = [
        make_node("Reshape", ["x", "shape"], ["r"]),
        make_node("MatMul", ["r", "w"], ["scores"]),
    ]
    stored = {"shape": np.array([1, 6]), "w": _w(6, 3)}
    made = build(graph_of(nodes, stored, image=("x", (1, 2, 3)), output=("scores", (1, 3))))
    assert check(made) < 2e-6


def test_an_older_operator_set_is_raised() -> None:
    model = graph_of([make_node("MatMul", ["x", "w"], ["scores"])], {"w": _w(6, 3)}, opset=11)
    assert build(model).model.opset_import[0].version == 18


def test_intermediate_tensors_may_have_any_name() -> None:
    names = ["loss", "w.next", "labels", "lr"]
    nodes = [make_node("MatMul", ["x", "w"], [names[0]])]
    nodes += [make_node("Tanh", [before], [after]) for before, after in pairwise(names)]
    nodes.append(make_node("Neg", [names[-1]], ["correct"]))
    made = build(graph_of(nodes, {"w": _w(6, 3)}, output=("correct", ("N", 3))))
    assert check(made) < 2e-6


@pytest.mark.parametrize(("name", "stored"), [("lr", "w"), ("x", "loss"), ("w.velocity", "w")])
def test_inputs_and_weights_with_a_name_that_training_needs_are_refused(name: str, stored: str) -> None:
    model = graph_of([make_node("MatMul", [name, stored], ["scores"])], {stored: _w(6, 3)}, image=(name, ("N", 6)))
    with pytest.raises(ModelError, match="which the training graph needs"):
        build(model)


def test_free_axes_other_than_the_batch_are_refused() -> None:
    node = make_node("MatMul", ["x", "w"], ["scores"])
    with pytest.raises(ModelError, match="free size in axis 1"):
        build(graph_of([node], {"w": _w(6, 3)}, image=("x", ("N", "length"))))


def test_an_input_without_axes_is_refused() -> None:
    node = make_node("Mul", ["x", "w"], ["scores"])
    with pytest.raises(ModelError, match="no batch axis"):
        build(graph_of([node], {"w": _w(6, 3)}, image=("x", ())))


def test_shapes_that_contradict_each_other_are_refused() -> None:
    nodes = [make_node("MatMul", ["x", "w"], ["scores"])]
    with pytest.raises(ModelError, match="contradict"):
        build(graph_of(nodes, {"w": _w(5, 3)}))


def test_a_shape_that_depends_on_the_data_is_refused() -> None:
    nodes = [
        make_node("MatMul", ["x", "w"], ["h"]),
        make_node("NonZero", ["x"], ["places"]),
        make_node("Cast", ["places"], ["numbers"], to=1),
        make_node("ReduceSum", ["numbers"], ["sum"], keepdims=1),
        make_node("Add", ["h", "sum"], ["scores"]),
    ]
    with pytest.raises(ModelError, match="depends on the data"):
        build(graph_of(nodes, {"w": _w(6, 3)}))


def test_trained_weights_go_back_by_name() -> None:
    model = models.mlp()
    moved = {name: value + 1 for name, value in models.mlp_weights().items()}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in with_weights(model, moved).graph.initializer}
    for name, value in moved.items():
        np.testing.assert_array_equal(stored[name], value)
    with pytest.raises(ModelError, match="no initializer 'other'"):
        with_weights(model, {"other": _w(2)})
    with pytest.raises(ModelError, match="has shape"):
        with_weights(model, {"W1": _w(2)})


@settings(max_examples=15, deadline=None)
@given(
    widths=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    batch=st.integers(1, 5),
    activation=st.sampled_from(["Tanh", "Sigmoid", "Relu"]),
)
def test_any_chain_of_layers_has_right_gradients(widths: list[int], batch: int, activation: str) -> None:
    sizes = [6, *widths]
    nodes: list[onnx.NodeProto] = []
    last = "x"
    for i in range(len(widths)):
        nodes.append(make_node("Gemm", [last, f"w{i}", f"b{i}"], [f"h{i}"]))
        nodes.append(make_node(activation, [f"h{i}"], [f"a{i}"]))
        last = f"a{i}"
    nodes.append(make_node("MatMul", [last, "out"], ["scores"]))
    stored = {f"w{i}": _w(sizes[i], sizes[i + 1]) for i in range(len(widths))}
    stored |= {f"b{i}": _w(size) for i, size in enumerate(widths)} | {"out": _w(sizes[-1], 3)}
    assert check(build(graph_of(nodes, stored), batch_size=batch)) < 2e-5
