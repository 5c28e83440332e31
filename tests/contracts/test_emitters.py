"""Every emitter writes artifacts that its runtime opens, the same bytes each time, the same face as the graph."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from converters import calibrate, graph
from converters.emit.base import Emitter
from converters.optimize.normalise import normalise
from converters.quantize.base import FLOAT32, Precision, Range, Ranges, Scheme
from edgert import plugins, profiles, runtime
from edgert.errors import CheckError
from edgert.samples import Samples
from tests.support import models

_PACKAGE = "converters.emit"
_PROFILE = profiles.load("x86-64")


_PRECISIONS = ("float32", "int8")
# Each of the two layers, and the input, rounds by half a step at most; 7-bit weights add as much again.
_STEPS = 4


@pytest.fixture(params=plugins.names(_PACKAGE))
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def emitter(suffix: str) -> Emitter:
    plugin: Emitter = plugins.load(_PACKAGE, suffix)
    return plugin


def _precision(name: str, model: onnx.ModelProto, ranges: Ranges | None = None) -> Precision:
    if name == "float32":
        return FLOAT32
    scheme: Scheme = plugins.load("converters.quantize", "static-int8")
    ranges = ranges or {tensor: Range(-40.0, 40.0) for tensor in scheme.observed(model)}
    options: Any = scheme.options_for(_PROFILE)
    return scheme.plan(model, ranges, options)


def _run(suffix: str, data: bytes, folder: Path, image: np.ndarray[Any, Any]) -> dict[str, Any]:
    path = folder / f"m.{suffix}"
    path.write_bytes(data)
    _, backend = runtime.backend_for(suffix)
    session = backend.open(path)
    try:
        assert [spec.name for spec in session.inputs] == ["image"]
        assert [spec.name for spec in session.outputs] == ["scores"]
        return session.run({"image": image})
    finally:
        session.close()


def test_every_precision_opens_and_answers_like_float(emitter: Emitter, suffix: str, tmp_path: Path) -> None:
    model, _ = normalise(models.cnn())
    image = np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)
    plain = _run(suffix, emitter.emit(model, FLOAT32, _PROFILE), tmp_path, image)["scores"]
    scheme: Scheme = plugins.load("converters.quantize", "static-int8")
    ranges = calibrate.observe(model, scheme.observed(model), Samples({"image": image}), tmp_path, timeout_s=60)
    precision = _precision("int8", model, ranges)
    said = _run(suffix, emitter.emit(model, precision, _PROFILE), tmp_path, image)["scores"]
    step = precision.activations["scores"].scale
    np.testing.assert_allclose(said, plain, rtol=0, atol=_STEPS * step)
    assert _STEPS * step < 0.05 * np.ptp(plain)  # else the comparison would prove nothing


def test_the_same_graph_and_precision_give_the_same_bytes_and_leave_the_graph_alone(emitter: Emitter) -> None:
    model, _ = normalise(models.cnn())
    before = graph.serialize(model)
    for name in _PRECISIONS:
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
