"""ONNX Runtime: inference sessions. The only module that imports it outside the converters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgert.backends.base import DEFAULT_OPTIONS, Availability, SessionOptions
from edgert.errors import BackendError
from edgert.values import Feeds, TensorSpec

__all__ = ["plugin"]

_DTYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
    "tensor(int8)": "int8", "tensor(int16)": "int16", "tensor(int32)": "int32", "tensor(int64)": "int64",
    "tensor(uint8)": "uint8", "tensor(uint16)": "uint16", "tensor(uint32)": "uint32", "tensor(uint64)": "uint64",
    "tensor(bool)": "bool", "tensor(string)": "str",
}  # fmt: skip


class _Session:
    def __init__(self, path: Path, options: SessionOptions) -> None:
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spinning)))
        settings.add_session_config_entry("session.inter_op.allow_spinning", str(int(options.spinning)))
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        providers = list(options.providers) or ["CPUExecutionProvider"]
        missing = set(providers) - set(ort.get_available_providers())
        if missing:
            raise BackendError(
                f"this onnxruntime has no {', '.join(sorted(missing))}",
                hint=f"it has {', '.join(ort.get_available_providers())}",
            )
        if "CPUExecutionProvider" not in providers:
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        with_options = [(name, dict(options.provider_options.get(name, {}))) for name in providers]
        try:
            self._session = ort.InferenceSession(str(path), settings, providers=with_options)
        except Exception as e:
            raise BackendError(f"onnxruntime cannot open {path.name}: {_first_line(e)}") from e
        self.inputs: Sequence[TensorSpec] = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs: Sequence[TensorSpec] = tuple(_spec(node) for node in self._session.get_outputs())
        self._names = [spec.name for spec in self.outputs]

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        try:
            return dict(zip(self._names, self._session.run(self._names, feeds), strict=True))
        except Exception as e:
            raise BackendError(f"onnxruntime refused the feeds: {_first_line(e)}") from e

    def nodes_by_provider(self) -> dict[str, int]:
        report: dict[str, int] = {}
        for part in self._session.get_provider_graph_assignment_info():
            report[part.ep_name] = report.get(part.ep_name, 0) + len(part.get_nodes())
        return report

    def close(self) -> None:
        del self._session


class _OnnxRuntime:
    formats = ("onnx", "ort")

    def probe(self) -> Availability:
        try:
            import onnxruntime as ort

            return Availability(True, ort.__version__)
        except Exception as e:
            return Availability(False, "", f"onnxruntime cannot be imported: {_first_line(e)}")

    def open(self, path: Path, options: SessionOptions = DEFAULT_OPTIONS) -> _Session:
        return _Session(path, options)


def _spec(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) and size >= 0 else None for size in node.shape)
    return TensorSpec(node.name, _DTYPES.get(node.type, node.type), shape)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


plugin = _OnnxRuntime()
