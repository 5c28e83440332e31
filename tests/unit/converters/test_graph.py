"""Reading a model: branches, functions, shapes, figures."""

import onnx
import pytest
from onnx import TensorProto, helper

from converters import graph
from edgert.errors import ModelError
from tests.support import models, onnx_models


def test_nodes_and_tensors_inside_branches_are_seen() -> None:
    model = onnx_models.branching()
    assert [node.op_type for node in graph.nodes(model)].count("Mul") == 2
    assert {"zero", "then.constant", "else.constant"} <= {tensor.name for tensor in graph.tensors(model)}


def test_nodes_of_functions_are_seen() -> None:
    assert "Add" in [node.op_type for node in graph.nodes(onnx_models.with_function())]


def test_figures_of_a_small_network_are_those_of_paper_and_pencil() -> None:
    model = onnx.shape_inference.infer_shapes(models.cnn())
    assert graph.macs(model) == 4 * 8 * 8 * 9 + 64 * 3
    assert graph.parameters(model) == 4 * 9 + 4 + 64 * 3 + 3
    assert graph.operators(model) == {"Conv": 1, "Flatten": 1, "Gemm": 1, "MaxPool": 1, "Relu": 1}


def test_inputs_leave_out_listed_initializers_and_keep_free_sizes() -> None:
    (spec,) = graph.inputs(onnx_models.old_cnn())
    assert (spec.name, spec.dtype, spec.shape) == ("image", "float32", (None, 1, 8, 8))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1]), "not a tensor"),
        (helper.make_tensor_value_info("x", TensorProto.STRING, [1]), "no plain numbers"),
        (helper.make_tensor_value_info("x", TensorProto.FLOAT, None), "rank"),
        (helper.make_tensor_value_info("x", 99, [1]), "element type"),
    ],
)
def test_inputs_that_cannot_travel_are_refused(value: onnx.ValueInfoProto, words: str) -> None:
    model = onnx_models.one_operator("Relu")
    model.graph.input[0].CopyFrom(value)
    with pytest.raises(ModelError, match=words):
        graph.inputs(model)


def test_a_damaged_tensor_is_refused_by_name() -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], raw_data=b"123")
    with pytest.raises(ModelError, match="'w'"):
        graph.array(tensor)
