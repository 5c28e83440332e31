"""Every emitter writes artifacts that its runtime opens, the same bytes each time, the same face as the graph."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from converters import graph
from converters.emit.base import Emitter
from converters.optimize.normalise import normalise
from converters.quantize.base import FLOAT32, Precision, Range, Scheme
from edgert import plugins, profiles, runtime
from edgert.errors import CheckError
from tests.support import models

_PACKAGE = "converters.emit"
_PROFILE = profiles.load("x86-64")


@pytest.fixture(params=plugins.names(_PACKAGE))
def emitter(request: pytest.FixtureRequest) -> Emitter:
    plugin: Emitter = plugins.load(_PACKAGE, request.param)
    return plugin


def _precision(name: str, model: onnx.ModelProto) -> Precision:
    if name == "float32":
        return FLOAT32
    scheme: Scheme = plugins.load("converters.quantize", "static-int8")
    ranges = {tensor: Range(-40.0, 40.0) for tensor in scheme.observed(model)}
    options: Any = scheme.options_for(_PROFILE)
    return scheme.plan(model, ranges, options)


def _run(emitter: Emitter, data: bytes, folder: Path, image: np.ndarray[Any, Any]) -> dict[str, Any]:
    path = folder / f"m.{emitter.format}"
    path.write_bytes(data)
    _, backend = runtime.backend_for(emitter.format)
    session = backend.open(path)
    try:
        assert [spec.name for spec in session.inputs] == ["image"]
        assert [spec.name for spec in session.outputs] == ["scores"]
        return session.run({"image": image})
    finally:
        session.close()


def test_every_precision_opens_and_answers_like_float(emitter: Emitter, tmp_path: Path) -> None:
    model, _ = normalise(models.cnn())
    image = np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)
    answers = {
        name: _run(emitter, emitter.emit(model, _precision(name, model), _PROFILE), tmp_path, image)["scores"]
        for name in emitter.precisions
    }
    for a, b in itertools.pairwise(answers.values()):
        np.testing.assert_allclose(a, b, atol=2.0)


def test_the_same_graph_and_precision_give_the_same_bytes_and_leave_the_graph_alone(emitter: Emitter) -> None:
    model, _ = normalise(models.cnn())
    before = graph.serialize(model)
    for name in emitter.precisions:
        precision = _precision(name, model)
        assert emitter.emit(model, precision, _PROFILE) == emitter.emit(model, precision, _PROFILE)
    assert graph.serialize(model) == before


def test_it_says_which_runtime_opens_the_artifact(emitter: Emitter) -> None:
    model, _ = normalise(models.cnn())
    for name, version in emitter.min_runtime(emitter.emit(model, FLOAT32, _PROFILE)).items():
        assert name in plugins.names("edgert.backends")
        assert all(part.isdigit() for part in version.split("."))


def test_a_precision_without_nodes_is_declined(emitter: Emitter) -> None:
    model, _ = normalise(models.cnn())
    quantized = _precision("int8", model)
    with pytest.raises(CheckError):
        emitter.emit(model, Precision("int8", quantized.activations, quantized.weights, ()), _PROFILE)
