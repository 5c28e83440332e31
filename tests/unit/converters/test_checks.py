"""Graphs that cannot be deployed are refused with the reason."""

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from converters import checks
from edgert.errors import ModelError
from tests.support import models, onnx_models

_PATH = Path("m.onnx")


def test_a_sound_graph_passes() -> None:
    for model in (models.cnn(), onnx_models.branching(), onnx_models.with_function()):
        checks.check(model, _PATH)


def test_an_unknown_operator_is_named_with_its_domain() -> None:
    with pytest.raises(ModelError, match=r"'FancyOp' of domain 'com\.acme'"):
        checks.check(onnx_models.one_operator("FancyOp", domain="com.acme"), _PATH)
    with pytest.raises(ModelError, match=r"'Relux' of the standard domain.*opset 17"):
        checks.check(onnx_models.one_operator("Relux"), _PATH)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    model = models.mlp()
    broken = models.mlp_weights()["b1"]
    broken[3] = value
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(broken, "b1"))
    with pytest.raises(ModelError, match="'b1'"):
        checks.check(model, _PATH)


def test_weights_inside_branches_are_checked_too() -> None:
    with pytest.raises(ModelError, match=r"then\.constant"):
        checks.check(onnx_models.branching(np.nan), _PATH)
