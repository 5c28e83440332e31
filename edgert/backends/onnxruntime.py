"""ONNX Runtime: inference and training sessions. The only module that imports it outside the converters."""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgert.backends.base import DEFAULT_OPTIONS, Availability, Metrics, SessionOptions, first_line
from edgert.errors import BackendError
from edgert.manifest import Training
from edgert.values import Feeds, TensorSpec, Weights, show_shape

__all__ = ["plugin"]

_CPU = "CPUExecutionProvider"
_DTYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
    "tensor(int8)": "int8", "tensor(int16)": "int16", "tensor(int32)": "int32", "tensor(int64)": "int64",
    "tensor(uint8)": "uint8", "tensor(uint16)": "uint16", "tensor(uint32)": "uint32", "tensor(uint64)": "uint64",
    "tensor(bool)": "bool", "tensor(string)": "str",
}  # fmt: skip


class _Session:
    def __init__(self, path: Path, options: SessionOptions) -> None:
        self._session = _open(path, options)
        self.inputs: Sequence[TensorSpec] = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs: Sequence[TensorSpec] = tuple(_spec(node) for node in self._session.get_outputs())
        self._names = [spec.name for spec in self.outputs]
        self._wanted = {spec.name: spec for spec in self.inputs}

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        if feeds.keys() != self._wanted.keys():
            raise _wrong_names(feeds, self._wanted)
        try:
            return dict(zip(self._names, self._session.run(self._names, feeds), strict=True))
        except _errors() as e:
            for name, spec in self._wanted.items():
                _check(name, feeds[name], spec)
            raise BackendError(f"onnxruntime failed: {first_line(e)}") from e

    def nodes_by_provider(self) -> dict[str, int]:
        # Versions before 1.24 cannot tell.
        if not hasattr(self._session, "get_provider_graph_assignment_info"):
            return {}
        report: dict[str, int] = {}
        for part in self._session.get_provider_graph_assignment_info():
            report[part.ep_name] = report.get(part.ep_name, 0) + len(part.get_nodes())
        return report

    def close(self) -> None:
        self._session = None


class _TrainingSession:
    """Two sets of buffers: a step reads parameters and state from one and writes them to the other, in turn.

    Every buffer is allocated by the runtime. A buffer made from a numpy array would share the array's memory: two sets
    made from the same arrays would be one, and the runtime would overwrite weights that it still reads.
    """

    def __init__(self, path: Path, training: Training, options: SessionOptions) -> None:
        self._training = training
        self._session = _open(path, options)
        specs = {node.name: _spec(node) for node in self._session.get_inputs()}
        _check_signature(training, specs, {node.name: _spec(node) for node in self._session.get_outputs()})
        batch = (*training.inputs, training.labels, training.sample_weight)
        self._fed = {name: specs[name] for name in (*batch, *training.scalars)}
        self._kept = (*training.parameters, *training.state)
        self._feeds = {name: _buffer(spec) for name, spec in self._fed.items()}
        self._sets: tuple[dict[str, Any], ...] = tuple(
            {name: _buffer(specs[name]) for name in self._kept} for _ in range(2)
        )
        scalar = TensorSpec("", "float32", ())
        self._metrics = {name: _buffer(scalar) for name in (training.loss, training.correct)}
        _refuse_shared_memory([self._feeds, *self._sets, self._metrics])
        self._bindings: tuple[Any, ...] = (self._bound(0, 1), self._bound(1, 0))
        self._current = 0
        self._started = False

    def _bound(self, source: int, target: int) -> Any:
        binding = self._session.io_binding()
        for name, value in (self._feeds | self._sets[source]).items():
            binding.bind_ortvalue_input(name, value)
        results = (*self._training.next_parameters, *self._training.next_state)
        for kept, name in zip(self._kept, results, strict=True):
            binding.bind_ortvalue_output(name, self._sets[target][kept])
        for name, value in self._metrics.items():
            binding.bind_ortvalue_output(name, value)
        return binding

    def step(self, batch: Feeds, scalars: Mapping[str, float]) -> Metrics:
        if not self._started:
            raise BackendError("the training session has no weights yet", hint="call restore first")
        feeds: Feeds = {**batch, **{name: np.array(value, np.float32) for name, value in scalars.items()}}
        if feeds.keys() != self._fed.keys():
            raise _wrong_names(feeds, self._fed)
        for name, spec in self._fed.items():
            _check(name, feeds[name], spec)
            self._feeds[name].update_inplace(np.ascontiguousarray(feeds[name]))
        try:
            self._session.run_with_iobinding(self._bindings[self._current])
        except _errors() as e:
            raise BackendError(f"onnxruntime failed in a training step: {first_line(e)}") from e
        self._current = 1 - self._current
        return Metrics(*(float(value.numpy()) for value in self._metrics.values()))

    def export(self) -> Weights:
        if not self._started:
            raise BackendError("the training session has no weights yet", hint="call restore first")
        values = self._sets[self._current]
        return {name: values[name].numpy().copy() for name in self._training.parameters}

    def restore(self, weights: Weights) -> None:
        values = self._sets[self._current]
        specs = {name: TensorSpec(name, "float32", tuple(values[name].shape())) for name in self._training.parameters}
        if weights.keys() != specs.keys():
            raise _wrong_names(weights, specs, what="weights")
        for name, spec in specs.items():
            _check(name, weights[name], spec)
        for name in self._training.parameters:
            values[name].update_inplace(np.ascontiguousarray(weights[name]))
        for name in self._training.state:
            values[name].update_inplace(np.zeros(values[name].shape(), np.float32))
        self._started = True

    def close(self) -> None:
        self._started = False
        self._bindings = ()
        self._feeds, self._sets, self._metrics = {}, (), {}
        self._session = None


class _OnnxRuntime:
    formats = ("onnx", "ort")

    def probe(self) -> Availability:
        try:
            import onnxruntime as ort

            return Availability(True, ort.__version__)
        except Exception as e:
            return Availability(False, "", f"onnxruntime cannot be imported: {first_line(e)}")

    def open(self, path: Path, options: SessionOptions = DEFAULT_OPTIONS) -> _Session:
        return _Session(path, options)

    def open_training(
        self, path: Path, training: Training, options: SessionOptions = DEFAULT_OPTIONS
    ) -> _TrainingSession:
        return _TrainingSession(path, training, options)


@cache
def _errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises: its own exceptions have no common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*own, RuntimeError, ValueError, TypeError)


def _open(path: Path, options: SessionOptions) -> Any:
    import onnxruntime as ort

    providers = list(options.providers) or [_CPU]
    missing = set(providers) - set(ort.get_available_providers())
    if missing:
        raise BackendError(
            f"this onnxruntime has no {', '.join(sorted(missing))}",
            hint=f"it has {', '.join(ort.get_available_providers())}",
        )
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spinning)))
    settings.add_session_config_entry("session.inter_op.allow_spinning", str(int(options.spinning)))
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if _CPU not in providers:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with_options = [(name, dict(options.provider_options.get(name, {}))) for name in providers]
    try:
        return ort.InferenceSession(str(path), settings, providers=with_options)
    except _errors() as e:
        raise BackendError(f"onnxruntime cannot open {path.name}: {first_line(e)}") from e


def _buffer(spec: TensorSpec) -> Any:
    import onnxruntime as ort

    value = ort.OrtValue.ortvalue_from_shape_and_type(list(spec.shape), np.dtype(spec.dtype).type, "cpu")
    value.update_inplace(np.zeros(value.shape(), np.dtype(spec.dtype)))
    return value


def _refuse_shared_memory(sets: Sequence[Mapping[str, Any]]) -> None:
    ranges = sorted(
        (value.data_ptr(), value.data_ptr() + value.tensor_size_in_bytes(), name)
        for values in sets
        for name, value in values.items()
    )
    for (_, end, first), (start, _, second) in pairwise(ranges):
        if start < end:
            raise BackendError(f"the buffers of {first!r} and {second!r} share memory")


def _check_signature(training: Training, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]) -> None:
    batch = (*training.inputs, training.labels, training.sample_weight)
    named = {*batch, *training.scalars, *training.parameters, *training.state}
    results = {training.loss, training.correct, *training.next_parameters, *training.next_state}
    if named != inputs.keys() or not results <= outputs.keys() or len(training.state) != len(training.parameters):
        odd = sorted((named ^ inputs.keys()) | (results - outputs.keys()))
        raise BackendError(
            f"the training graph does not fit its description: {', '.join(odd[:5]) or 'the optimizer state'}",
            hint="convert the model again with --train",
        )
    pairs = [
        *zip(training.parameters, training.next_parameters, strict=True),
        *zip(training.parameters, training.state, strict=True),
        *zip(training.state, training.next_state, strict=True),
    ]
    for name, other in pairs:
        twin = outputs.get(other) or inputs[other]
        if (inputs[name].shape, inputs[name].dtype) != (twin.shape, twin.dtype) or inputs[name].dtype != "float32":
            raise BackendError(f"{name!r} and {other!r} of the training graph differ in shape or type")
    free = [spec.name for spec in inputs.values() if None in spec.shape]
    rows = [name for name in batch if inputs[name].shape[:1] != (training.batch_size,)]
    if free or rows:
        raise BackendError(
            f"input {[*free, *rows][0]!r} of the training graph is not made for batches of {training.batch_size}"
        )


def _wrong_names(given: Mapping[str, Any], wanted: Mapping[str, Any], *, what: str = "feeds") -> BackendError:
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    parts = [
        f"{word} {', '.join(map(repr, names[:5]))}"
        for word, names in (("missing", missing), ("unknown", unknown))
        if names
    ]
    return BackendError(
        f"the {what} do not fit the model: {'; '.join(parts)}", hint=f"it takes {', '.join(sorted(wanted))}"
    )


def _check(name: str, array: Any, spec: TensorSpec) -> None:
    have = f"{array.dtype} [{show_shape(array.shape)}]" if isinstance(array, np.ndarray) else type(array).__name__
    fits = (
        isinstance(array, np.ndarray)
        and (array.dtype == spec.dtype or (spec.dtype == "str" and array.dtype.kind in "OSU"))
        and spec.fits(array.shape)
    )
    if not fits:
        raise BackendError(f"input {name!r} is {have}, the model takes {spec.dtype} [{show_shape(spec.shape)}]")


def _spec(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) and size >= 0 else None for size in node.shape)
    return TensorSpec(node.name, _DTYPES.get(node.type, node.type), shape)


plugin = _OnnxRuntime()
