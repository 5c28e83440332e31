"""Every quantization scheme decides the same twice, and names only what is in the graph."""

from typing import Any

import numpy as np
import onnx
import pytest

from converters import graph
from converters.optimize.normalise import normalise
from converters.quantize.base import Precision, Range, Scheme
from edgert import plugins, profiles
from edgert.errors import CheckError
from tests.support import models, onnx_models

_PACKAGE = "converters.quantize"


@pytest.fixture(params=plugins.names(_PACKAGE))
def scheme(request: pytest.FixtureRequest) -> Scheme:
    plugin: Scheme = plugins.load(_PACKAGE, request.param)
    return plugin


def _cnn() -> onnx.ModelProto:
    return normalise(models.cnn())[0]


def _ranges(scheme: Scheme, model: onnx.ModelProto) -> dict[str, Range]:
    return {name: Range(-1.0 - i, 2.0 + i) for i, name in enumerate(scheme.observed(model))}


def _planned(scheme: Scheme, model: onnx.ModelProto, profile: str = "x86-64") -> Precision:
    options: Any = scheme.options_for(profiles.load(profile))
    return scheme.plan(model, _ranges(scheme, model), options)


def test_it_plans_a_small_network(scheme: Scheme) -> None:
    model = _cnn()
    planned = _planned(scheme, model)
    assert planned.name == scheme.precision != "float32"
    assert set(planned.nodes) <= {node.name for node in model.graph.node}
    assert planned.nodes
    assert planned == _planned(scheme, model)


def test_it_observes_only_float_values_that_are_not_stored(scheme: Scheme) -> None:
    model = _cnn()
    observed = scheme.observed(model)
    types = graph.element_types(model)
    assert len(set(observed)) == len(observed)
    assert observed
    assert all(types[name] == onnx.TensorProto.FLOAT for name in observed)
    assert not set(observed) & models.float_weights(model).keys()


def test_every_range_is_covered_and_zero_is_exact(scheme: Scheme) -> None:
    model = _cnn()
    ranges = _ranges(scheme, model)
    for stored in _planned(scheme, model).activations.values():
        assert stored.scale > 0
        assert np.isfinite(np.float32(stored.scale))
        assert 0 <= stored.zero_point <= 255
    inputs = [spec.name for spec in graph.inputs(model)]
    for name, stored in _planned(scheme, model).activations.items():
        if name in inputs:
            low, high = ranges[name]
            assert stored.scale * (0 - stored.zero_point) <= low + stored.scale
            assert stored.scale * (255 - stored.zero_point) >= high - stored.scale


def test_options_follow_the_profile_and_refuse_unknown_keys(scheme: Scheme) -> None:
    with pytest.raises(ValueError, match="extra"):
        scheme.Options.model_validate({"no_such_option": 1})
    for name in profiles.names():
        assert isinstance(scheme.options_for(profiles.load(name)), scheme.Options)


def test_a_graph_without_weights_is_declined(scheme: Scheme) -> None:
    model, _ = normalise(onnx_models.chain(3))
    with pytest.raises(CheckError):
        _planned(scheme, model)


def test_an_opset_without_per_channel_quantization_is_declined(scheme: Scheme) -> None:
    old = onnx.shape_inference.infer_shapes(onnx_models.old_cnn())
    with pytest.raises(CheckError, match="opset 8"):
        _planned(scheme, old)
