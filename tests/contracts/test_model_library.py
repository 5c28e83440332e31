"""Every network of the model library: made the same each time, runnable, trainable, its gradients checked."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from converters import graph
from converters.models.base import Network
from converters.training.build import build, check
from edgert import plugins
from edgert.backends.onnxruntime import plugin as runtime
from edgert.values import is_name

_PACKAGE = "converters.models"


@pytest.fixture(params=plugins.names(_PACKAGE))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def network(name: str) -> Network:
    plugin: Network = plugins.load(_PACKAGE, name)
    return plugin


def test_its_name_may_name_a_model_and_its_summary_is_one_line(name: str, network: Network) -> None:
    assert is_name(name)
    assert network.summary
    assert "\n" not in network.summary


def test_the_same_seed_makes_the_same_bytes_and_another_seed_others(network: Network) -> None:
    assert graph.serialize(network.make(3)) == graph.serialize(network.make(3))
    assert graph.serialize(network.make(3)) != graph.serialize(network.make(4))


def test_it_is_a_valid_model_of_the_operator_sets_that_boxes_know(network: Network) -> None:
    model = network.make(0)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    assert 18 <= graph.default_opset(model) <= 21


def test_it_answers_batches_of_any_size(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(graph.serialize(network.make(0)))
    session = runtime.open(path)
    (spec,), (output,) = session.inputs, session.outputs
    assert spec.shape[0] is None
    assert output.shape[0] is None
    random = np.random.default_rng(0)
    for batch in (1, 5):
        x = random.random((batch, *(size or 1 for size in spec.shape[1:])), dtype=np.float32)
        scores = session.run({spec.name: x})[output.name]
        assert scores.shape == (batch, output.shape[1])
        assert np.isfinite(scores).all()


def test_it_can_be_trained_and_its_gradients_are_right(network: Network) -> None:
    made = build(network.make(0))
    assert check(made) < 2e-6
    stored = {tensor.name for tensor in made.source.graph.initializer}
    assert set(made.weights) == stored
