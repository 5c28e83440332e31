"""Canonical form: recent opset, clean inputs, all names kept, nothing to do the second time."""

import onnx
import pytest

from converters import graph
from converters.optimize import clean as clean_module
from converters.optimize.clean import clean
from converters.optimize.normalise import OPSET, normalise
from tests.support import models, onnx_models


def test_an_old_graph_is_raised_and_keeps_every_weight_name() -> None:
    raised, notes = normalise(onnx_models.old_cnn())
    assert notes == ()
    assert graph.default_opset(raised) == OPSET
    assert raised.ir_version >= 8
    assert [value.name for value in raised.graph.input] == ["image"]
    assert {row.domain for row in raised.opset_import} == {""}
    assert models.float_weights(raised).keys() == {"K", "W", "b"}
    onnx.checker.check_model(raised, full_check=True)


def test_the_second_time_changes_no_byte() -> None:
    for model in (onnx_models.old_cnn(), models.cnn(), onnx_models.branching(), onnx_models.with_function()):
        once, _ = normalise(model)
        twice, _ = normalise(onnx.load_model_from_string(graph.serialize(once)))
        assert graph.serialize(twice) == graph.serialize(once)


def test_the_given_graph_is_not_touched() -> None:
    model = onnx_models.old_cnn()
    before = model.SerializeToString(deterministic=True)
    normalise(model)
    assert model.SerializeToString(deterministic=True) == before


def test_an_opset_that_cannot_be_raised_is_kept_with_a_note() -> None:
    model = onnx_models.one_operator("Upsample", opset=9)
    kept, notes = normalise(model)
    assert graph.default_opset(kept) == 9
    assert "opset 9" in notes[0]


def test_nodes_get_distinct_names() -> None:
    named, _ = normalise(onnx_models.chain(5))
    assert len({node.name for node in named.graph.node}) == 5


def test_cleaning_keeps_names_and_free_sizes_of_inputs_and_outputs() -> None:
    before, _ = normalise(models.cnn())
    after, notes = clean(before)
    assert notes == ()
    assert graph.inputs(after) == graph.inputs(before)
    assert [spec.name for spec in graph.outputs(after)] == ["scores"]


def test_biases_of_one_row_become_vectors() -> None:
    model = models.mlp()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "b1")
    bias.dims[:] = [1, *bias.dims]
    after, _ = clean(normalise(model)[0])
    assert all(len(value.shape) != 2 or value.shape[0] != 1 for value in models.float_weights(after).values())
    onnx.checker.check_model(after, full_check=True)


def test_very_long_graphs_are_left_as_they_are() -> None:
    model = onnx_models.chain(5001)
    same, notes = clean(model)
    assert same is model
    assert "5001" in notes[0]


def test_a_graph_that_the_library_cannot_clean_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("no such thing")

    monkeypatch.setattr(clean_module.onnxslim, "slim", broken)
    model = models.cnn()
    same, notes = clean(model)
    assert same is model
    assert "KeyError" in notes[0]
