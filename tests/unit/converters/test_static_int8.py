"""Static 8-bit: what the plan decides, and that the emitted bytes hold exactly that."""

from typing import Any

import numpy as np
import onnx
import pytest

from converters import graph
from converters.emit.onnx import plugin as emitter
from converters.optimize.normalise import normalise
from converters.quantize.base import Precision, Range
from converters.quantize.static_int8 import affine
from converters.quantize.static_int8 import plugin as scheme
from edgert import profiles
from tests.support import models


def _planned(profile: str) -> tuple[onnx.ModelProto, Precision]:
    model, _ = normalise(models.cnn())
    ranges = {name: Range(-8.0, 8.0) for name in scheme.observed(model)}
    ranges["r"] = Range(0.0, 5.1)
    options: Any = scheme.options_for(profiles.load(profile))
    return model, scheme.plan(model, ranges, options)


def _weights(artifact: bytes) -> list[np.ndarray[Any, Any]]:
    stored = onnx.load_model_from_string(artifact).graph.initializer
    return [graph.array(t) for t in stored if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]


@pytest.mark.parametrize(("profile", "bits"), [("x86-64", 7), ("generic-cpu", 7), ("raspberry-pi-5", 8)])
def test_weights_keep_to_seven_bits_where_kernels_may_saturate(profile: str, bits: int) -> None:
    model, planned = _planned(profile)
    assert planned.weights is not None
    assert planned.weights.bits == bits
    largest = max(
        int(np.abs(w.astype(int)).max()) for w in _weights(emitter.emit(model, planned, profiles.load(profile)))
    )
    assert (largest <= 64) == (bits == 7)


def test_a_value_behind_which_a_rectifier_sits_takes_the_range_behind_it() -> None:
    _, planned = _planned("x86-64")
    assert planned.activations["c"] == planned.activations["r"] == affine(Range(0.0, 5.1))


def test_the_bytes_hold_the_scales_of_the_plan() -> None:
    model, planned = _planned("x86-64")
    written = onnx.load_model_from_string(emitter.emit(model, planned, profiles.load("x86-64")))
    scales = {float(graph.array(t)) for t in written.graph.initializer if t.data_type == 1 and not t.dims}
    used = {name for node in model.graph.node for name in (*node.input, *node.output)} - {"c"}
    assert {
        float(np.float32(planned.activations[name].scale)) for name in used if name in planned.activations
    } <= scales


def test_activations_are_unsigned_and_weights_have_a_scale_per_channel() -> None:
    model, planned = _planned("x86-64")
    written = onnx.load_model_from_string(emitter.emit(model, planned, profiles.load("x86-64")))
    types = {tensor.name: tensor for tensor in written.graph.initializer}
    for node in written.graph.node:
        if node.op_type == "QuantizeLinear":
            assert types[node.input[2]].data_type == onnx.TensorProto.UINT8
    assert any(t.data_type == onnx.TensorProto.FLOAT and list(t.dims) == [4] for t in types.values())


def test_names_of_inputs_and_outputs_survive_and_the_others_are_short() -> None:
    model, planned = _planned("x86-64")
    written = onnx.load_model_from_string(emitter.emit(model, planned, profiles.load("x86-64")))
    assert graph.inputs(written) == graph.inputs(model)
    assert [value.name for value in written.graph.output] == ["scores"]
    assert max(len(tensor.name) for tensor in written.graph.initializer) <= 3
    onnx.checker.check_model(written, full_check=True)


def test_a_tensor_that_never_changes_gets_a_harmless_scale() -> None:
    assert affine(Range(0.0, 0.0)).scale == 1.0
    assert affine(Range(0.0, 1e-42)).scale == 1.0
