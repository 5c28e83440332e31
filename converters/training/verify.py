"""The gradient check of a training graph: the emitted artifact against an evaluation that shares no code with it.

The reference is the inference graph itself, evaluated in float64 by `onnx.reference`, with the loss in numpy; its
derivatives are central differences along random directions, a few for every parameter. The artifact runs on
onnxruntime as it will on a box, with graph optimizations on and off, because a rewrite may change the result.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from converters.training.artifact import TrainingGraph
from converters.training.reference import Reference
from edgert.errors import CheckError
from edgert.manifest import Training
from edgert.values import Feeds, Weights

__all__ = ["TOLERANCE", "check"]

TOLERANCE: Final = 2e-5
_ATTEMPTS: Final = 3
_STEPS: Final = (1e-6, 1e-7, 1e-5)
_FLOOR: Final = 1e-3
_LR, _MOMENTUM = 0.125, 0.5

_Float64 = NDArray[np.float64]


def check(
    graph: TrainingGraph, *, tolerance: float = TOLERANCE, rows: int = 4, directions: int = 2, seed: int = 0
) -> float:
    """The largest relative error of a gradient of `graph`, as the artifact gives it.

    The point is near the weights, not on them: values that are exactly 0 would sit on the kinks of `Relu`. Where
    float32 rounding puts a value on the other side of a kink, the gradients differ with good reason: another point is
    tried, three in all. A wrong rule fails at every point.

    Args:
        tolerance: float32 against float64 gives 1e-7 to 2e-6, a wrong rule 1e-2 and more.
        rows: samples that count; the rest of the batch is padding, which must change nothing.
        directions: random directions per parameter.

    Returns:
        Largest, over the parameters, root mean square of (gradient - difference quotient) along the directions,
        relative to the gradient's norm (at least 1e-3 of the largest one's).

    Raises:
        CheckError: an error above `tolerance`, or a wrong loss, count or optimizer step.
    """
    artifacts = {"on": _Artifact(graph, optimized=True), "off": _Artifact(graph, optimized=False)}
    rows = min(rows, graph.training.batch_size)
    points = [np.random.default_rng([seed, attempt]) for attempt in range(_ATTEMPTS)]
    for random in points[:-1]:
        with suppress(CheckError):
            return _check_at_a_point(graph, artifacts, random, tolerance, rows, directions)
    return _check_at_a_point(graph, artifacts, points[-1], tolerance, rows, directions)


def _check_at_a_point(
    graph: TrainingGraph,
    artifacts: Mapping[str, "_Artifact"],
    random: np.random.Generator,
    tolerance: float,
    rows: int,
    directions: int,
) -> float:
    point, batch = _point(graph, random), _batch(graph, rows, random)
    reference = Reference(graph.source, graph.training.parameters, *batch.counted(graph.training))
    lines = _Lines(reference, point, directions, random)
    worst = 0.0
    for optimizations, artifact in artifacts.items():
        values = artifact.run(batch.feeds, point, None)
        _check_metrics(reference.scores(point), reference, values, graph.training)
        # From a state of zero the new state is the gradient.
        states = zip(graph.training.parameters, graph.training.next_state, strict=True)
        found = {name: values[state].astype(np.float64) for name, state in states}
        errors = lines.errors(found)
        name = max(errors, key=lambda key: errors[key])
        if not errors[name] <= tolerance:
            raise CheckError(
                f"the gradient of {name!r} is wrong by {errors[name]:.2g} (tolerance {tolerance:g}, "
                f"graph optimizations {optimizations})",
                hint="a gradient rule or the runtime computes something else than the model's derivative",
            )
        worst = max(worst, errors[name])
        _check_update(artifact, graph.training, batch.feeds, point, found, random)
    return worst


class _Lines:
    """Random directions through a point, and the slopes of the reference along them, each computed once."""

    def __init__(self, reference: Reference, point: Weights, count: int, random: np.random.Generator) -> None:
        self._reference = reference
        self._point = point
        self._lines = [(name, random.standard_normal(point[name].shape)) for name in point for _ in range(count)]
        self._slopes: dict[tuple[int, float], float] = {}

    def errors(self, found: Mapping[str, _Float64]) -> dict[str, float]:
        """How far the gradients `found` are from the slopes, by parameter."""
        norms = {name: float(np.linalg.norm(grad)) for name, grad in found.items()}
        floor = _FLOOR * max(norms.values())
        squares: dict[str, list[float]] = {name: [] for name in found}
        for i, (name, line) in enumerate(self._lines):
            along, scale = float(np.sum(found[name] * line)), max(norms[name], floor, 1e-30)
            squares[name].append((self._distance(i, along, scale * TOLERANCE / 10) / scale) ** 2)
        return {name: float(np.sqrt(np.mean(values))) for name, values in squares.items()}

    def _distance(self, i: int, along: float, enough: float) -> float:
        """Difference from the slope; a kink between the two points it is taken from goes away with another step."""
        distance = np.inf
        for step in _STEPS:
            if (i, step) not in self._slopes:
                self._slopes[i, step] = self._reference.slope(self._point, *self._lines[i], step)
            distance = min(distance, abs(along - self._slopes[i, step]))
            if distance <= enough:
                break
        return distance


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch whose last rows are padding.

    Args:
        feeds: of the training graph: data inputs, labels, sample weights.
        rows: how many rows count.
    """

    feeds: dict[str, NDArray[Any]]
    rows: int

    def counted(self, training: Training) -> tuple[dict[str, NDArray[Any]], NDArray[Any], NDArray[Any]]:
        """Data inputs, labels and weights of the rows that count."""
        rows = {name: array[: self.rows] for name, array in self.feeds.items()}
        data = {name: rows[name] for name in training.inputs}
        return data, rows[training.labels], rows[training.sample_weight]


def _point(graph: TrainingGraph, random: np.random.Generator) -> Weights:
    point = {}
    for name, value in graph.weights.items():
        spread = 0.01 * float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))) + 1e-3
        point[name] = (value + spread * random.standard_normal(value.shape)).astype(np.float32)
    return point


def _batch(graph: TrainingGraph, rows: int, random: np.random.Generator) -> _Batch:
    training = graph.training
    feeds: dict[str, NDArray[Any]] = {}
    for info in graph.model.graph.input:
        if info.name in training.inputs:
            tensor = info.type.tensor_type
            shape = [dim.dim_value for dim in tensor.shape.dim]
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
            drawn = random.standard_normal(shape) if dtype.kind == "f" else random.integers(0, 100, shape)
            feeds[info.name] = drawn.astype(dtype)
    classes = training.classes or 2
    feeds[training.labels] = random.integers(0, classes, training.batch_size)
    weight = np.zeros(training.batch_size, np.float32)
    weight[:rows] = random.uniform(0.5, 1.5, rows)
    feeds[training.sample_weight] = weight
    return _Batch(feeds, rows)


def _check_metrics(
    scores: _Float64, reference: Reference, values: Mapping[str, NDArray[Any]], training: Training
) -> None:
    loss, found = reference.loss(scores), float(values[training.loss])
    if not abs(found - loss) <= 1e-4 * (1 + abs(loss)):
        raise CheckError(f"the loss of the training graph is {found:.6g}, the model's is {loss:.6g}")
    best = np.sort(scores, axis=1)
    if np.min(best[:, -1] - best[:, -2]) < 1e-4 * (1 + np.abs(scores).max()):
        return  # a tie: float32 may decide otherwise
    correct = reference.correct(scores)
    if not abs(float(values[training.correct]) - correct) <= 1e-4 * (1 + correct):
        raise CheckError("the training graph counts other right answers than the model gives")


def _check_update(
    artifact: "_Artifact",
    training: Training,
    feeds: Feeds,
    point: Weights,
    found: Mapping[str, _Float64],
    random: np.random.Generator,
) -> None:
    """Compare one step from a state that is not zero with the optimizer's formula."""
    state = {name: random.standard_normal(value.shape).astype(np.float32) for name, value in point.items()}
    values = artifact.run(feeds, point, state)
    names = zip(training.parameters, training.next_parameters, training.next_state, strict=True)
    for name, moved, carried in names:
        velocity = _MOMENTUM * state[name] + found[name]
        close = np.allclose(values[carried], velocity, rtol=1e-4, atol=1e-5 * (1 + np.abs(velocity).max()))
        stepped = point[name] - _LR * velocity
        if not close or not np.allclose(values[moved], stepped, rtol=1e-4, atol=1e-5 * (1 + np.abs(stepped).max())):
            raise CheckError(f"the optimizer step of {name!r} is wrong", hint="convert again without --train")


class _Artifact:
    """The training graph on onnxruntime."""

    def __init__(self, graph: TrainingGraph, *, optimized: bool) -> None:
        import onnxruntime as ort
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.log_severity_level = 3
        levels = ort.GraphOptimizationLevel
        settings.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
        self._training = graph.training
        self._names = [info.name for info in graph.model.graph.output]
        data = graph.model.SerializeToString(deterministic=True)
        try:
            self._session: Any = ort.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
        except (
            state.Fail,
            state.InvalidArgument,
            state.InvalidGraph,
            state.NotImplemented,
            state.RuntimeException,
        ) as e:
            raise CheckError(f"onnxruntime cannot open the training graph: {str(e).strip()[:300]}") from e

    def run(self, feeds: Feeds, point: Weights, state: Weights | None) -> dict[str, NDArray[Any]]:
        """Every output for one batch; a state of None is zero."""
        carried = {
            kept: np.zeros_like(point[name]) if state is None else state[name]
            for name, kept in zip(self._training.parameters, self._training.state, strict=True)
        }
        rates = (_LR, 0.0 if state is None else _MOMENTUM)
        scalars = {name: np.array(v, np.float32) for name, v in zip(self._training.scalars, rates, strict=True)}
        return dict(
            zip(self._names, self._session.run(self._names, {**feeds, **point, **carried, **scalars}), strict=True)
        )
