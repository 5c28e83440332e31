"""The gradient check of a training graph: the emitted artifact against an evaluation that shares no code with it.

The reference is the inference graph itself, evaluated in float64 by `onnx.reference`, with the loss in numpy; its
derivatives are central differences along random directions, a few for every parameter. The artifact runs on
onnxruntime as it will on a box, with graph optimizations on and off, because a rewrite may change the result.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from converters.training.artifact import TrainingGraph
from edgert.errors import CheckError
from edgert.values import Feeds, Weights

__all__ = ["TOLERANCE", "check"]

TOLERANCE: Final = 1e-4
_STEPS: Final = (1e-5, 1e-6, 1e-7)
_FLOOR: Final = 1e-3
_LR, _MOMENTUM = 0.125, 0.5

_Float64 = NDArray[np.float64]


def check(
    graph: TrainingGraph, *, tolerance: float = TOLERANCE, rows: int = 4, directions: int = 2, seed: int = 0
) -> float:
    """The largest relative error of a gradient of `graph`, as the artifact gives it.

    The point is near the weights, not on them: values that are exactly 0 would sit on the kinks of `Relu`.

    Args:
        tolerance: float32 against float64 gives 1e-7 to 1e-5, a wrong rule 1e-2 and more.
        rows: samples that count; the rest of the batch is padding, which must change nothing.
        directions: random directions per parameter.

    Returns:
        Largest, over the parameters, root mean square of (gradient - difference quotient) along the directions,
        relative to the gradient's norm (at least 1e-3 of the largest one's).

    Raises:
        CheckError: an error above `tolerance`, or a wrong loss, count or optimizer step.
    """
    random = np.random.default_rng(seed)
    point = _point(graph, random)
    batch = _batch(graph, min(rows, graph.training.batch_size), random)
    reference = _Reference(graph, batch)
    lines = [(name, random.standard_normal(value.shape)) for name, value in point.items() for _ in range(directions)]
    slopes: dict[int, dict[float, float]] = {i: {} for i in range(len(lines))}

    def slope(i: int, step: float) -> float:
        if step not in slopes[i]:
            name, line = lines[i]
            slopes[i][step] = reference.slope(point, name, line, step)
        return slopes[i][step]

    worst = 0.0
    for optimized in (True, False):
        results = _Artifact(graph, optimized)
        values = results.run(batch.feeds, point, None)
        reference.check_metrics(point, values, graph)
        found = {name: values[state].astype(np.float64) for name, state in _gradient_names(graph).items()}
        errors = _errors(found, lines, slope, tolerance)
        name = max(errors, key=lambda key: errors[key])
        if not errors[name] <= tolerance:
            raise CheckError(
                f"the gradient of {name!r} is wrong by {errors[name]:.2g} (tolerance {tolerance:g}, "
                f"graph optimizations {'on' if optimized else 'off'})",
                hint="a gradient rule or the runtime computes something else than the model's derivative",
            )
        worst = max(worst, errors[name])
        _check_update(results, graph, batch.feeds, point, found, random)
    return worst


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch whose last rows are padding.

    Args:
        feeds: of the training graph: data inputs, labels, sample weights.
        rows: how many rows count.
    """

    feeds: dict[str, NDArray[Any]]
    rows: int


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
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            drawn = random.standard_normal(shape) if dtype.kind == "f" else random.integers(0, 100, shape)
            feeds[info.name] = drawn.astype(dtype)
    classes = training.classes or 2
    feeds[training.labels] = random.integers(0, classes, training.batch_size)
    weight = np.zeros(training.batch_size, np.float32)
    weight[:rows] = random.uniform(0.5, 1.5, rows)
    feeds[training.sample_weight] = weight
    return _Batch(feeds, rows)


def _gradient_names(graph: TrainingGraph) -> dict[str, str]:
    """Outputs that hold the gradients when the state is zero."""
    return dict(zip(graph.training.parameters, graph.training.next_state, strict=True))


def _errors(
    found: Mapping[str, _Float64],
    lines: list[tuple[str, _Float64]],
    slope: Callable[[int, float], float],
    tolerance: float,
) -> dict[str, float]:
    norms = {name: float(np.linalg.norm(grad)) for name, grad in found.items()}
    floor = _FLOOR * max(norms.values())
    squares: dict[str, list[float]] = {name: [] for name in found}
    for i, (name, line) in enumerate(lines):
        along = float(np.sum(found[name] * line))
        error = np.inf
        for step in _STEPS:  # a kink between the two points of a difference goes away with a smaller step
            true = slope(i, step)
            error = min(error, abs(along - true) / max(norms[name], floor, abs(true) * _FLOOR, 1e-300))
            if error <= tolerance:
                break
        squares[name].append(error**2)
    return {name: float(np.sqrt(np.mean(values))) for name, values in squares.items()}


def _check_update(
    artifact: "_Artifact",
    graph: TrainingGraph,
    feeds: Feeds,
    point: Weights,
    found: Mapping[str, _Float64],
    random: np.random.Generator,
) -> None:
    """Compare one step from a state that is not zero with the optimizer's formula."""
    training = graph.training
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

    def __init__(self, graph: TrainingGraph, optimized: bool) -> None:
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.log_severity_level = 3
        levels = ort.GraphOptimizationLevel
        settings.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
        self._training = graph.training
        self._names = [info.name for info in graph.model.graph.output]
        data = graph.model.SerializeToString(deterministic=True)
        self._session: Any = ort.InferenceSession(data, settings, providers=["CPUExecutionProvider"])

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


class _Reference:
    """The loss of the inference graph in float64, as a function of the parameters."""

    def __init__(self, graph: TrainingGraph, batch: _Batch) -> None:
        training = graph.training
        self._labels = batch.feeds[training.labels][: batch.rows]
        self._weight = batch.feeds[training.sample_weight][: batch.rows].astype(np.float64)
        model = _in_float64(graph.source, set(training.parameters))
        self._evaluator = ReferenceEvaluator(model)
        self._output = model.graph.output[0].name
        declared = graph.source.graph.input
        fixed = [info.type.tensor_type.shape.dim[0].dim_value for info in declared if info.name in training.inputs]
        self._chunks = _chunks(batch, training.inputs, max(fixed))

    def scores(self, point: Mapping[str, NDArray[Any]]) -> _Float64:
        """float64 [rows, classes]."""
        parameters = {name: value.astype(np.float64) for name, value in point.items()}
        parts = [self._evaluator.run([self._output], {**chunk, **parameters})[0] for chunk in self._chunks]
        return np.concatenate([part.reshape(len(part), -1) for part in parts])[: len(self._labels)]

    def loss(self, scores: _Float64) -> float:
        """Weighted mean cross-entropy."""
        shifted = scores - scores.max(axis=1, keepdims=True)
        log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        picked = log_probability[np.arange(len(scores)), self._labels]
        return float(-(picked * self._weight).sum() / self._weight.sum())

    def slope(self, point: Weights, name: str, line: _Float64, step: float) -> float:
        """The derivative along `line`, a direction of the parameter `name`, by central differences."""
        ahead, behind = (
            self.loss(self.scores({**point, name: point[name].astype(np.float64) + sign * step * line}))
            for sign in (1, -1)
        )
        return (ahead - behind) / (2 * step)

    def check_metrics(self, point: Weights, values: Mapping[str, NDArray[Any]], graph: TrainingGraph) -> None:
        """Compare loss and number of right answers."""
        scores = self.scores(point)
        loss, found = self.loss(scores), float(values[graph.training.loss])
        if not abs(found - loss) <= 1e-4 * (1 + abs(loss)):
            raise CheckError(f"the loss of the training graph is {found:.6g}, the model's is {loss:.6g}")
        best = np.sort(scores, axis=1)
        if np.min(best[:, -1] - best[:, -2]) < 1e-4 * (1 + np.abs(scores).max()):
            return  # a tie: float32 may decide otherwise
        correct = float(self._weight[scores.argmax(axis=1) == self._labels].sum())
        if not abs(float(values[graph.training.correct]) - correct) <= 1e-4 * (1 + correct):
            raise CheckError("the training graph counts other right answers than the model gives")


def _chunks(batch: _Batch, names: tuple[str, ...], fixed: int) -> list[dict[str, NDArray[Any]]]:
    """The rows that count, in batches of the size the inference graph wants (0 = any)."""
    size = fixed or batch.rows
    chunks = []
    for first in range(0, batch.rows, size):
        chunk = {}
        for name in names:
            rows = batch.feeds[name][first : min(first + size, batch.rows)]
            full = np.zeros((size, *rows.shape[1:]), np.float64 if rows.dtype.kind == "f" else rows.dtype)
            full[: len(rows)] = rows
            chunk[name] = full
        chunks.append(chunk)
    return chunks


def _in_float64(model: onnx.ModelProto, parameters: set[str]) -> onnx.ModelProto:
    """A copy that computes in float64, with `parameters` as inputs and without a final softmax."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    kept = [_tensor_in_float64(tensor) for tensor in graph.initializer if tensor.name not in parameters]
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer if tensor.name in parameters}
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.CopyFrom(_tensor_in_float64(attribute.t))
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    output = _before_softmax(graph)
    inputs = [info for info in graph.input if info.name not in shapes]
    inputs += [helper.make_tensor_value_info(name, TensorProto.DOUBLE, shape) for name, shape in shapes.items()]
    for info in inputs:
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    del graph.input[:], graph.output[:]
    graph.input.extend(inputs)
    graph.output.append(helper.make_tensor_value_info(output, TensorProto.DOUBLE, None))
    return copy


def _before_softmax(graph: onnx.GraphProto) -> str:
    name = graph.output[0].name
    makers = {output: node for node in graph.node for output in node.output}
    while name in makers and makers[name].op_type in ("Identity", "Dropout"):
        name = makers[name].input[0]
    if name in makers and makers[name].op_type in ("Softmax", "LogSoftmax"):
        return makers[name].input[0]
    return name


def _tensor_in_float64(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type != TensorProto.FLOAT:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
