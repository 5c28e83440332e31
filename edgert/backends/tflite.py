"""TFLite: interpreter sessions through LiteRT, or through tflite-runtime where that is what the box has.

A quantized tensor is float32 to the outside, converted with its own scale and zero point, so that a float and an 8-bit
artifact of the same model are fed and read alike.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgert.backends.base import DEFAULT_OPTIONS, Availability, SessionOptions, check_feeds, first_line
from edgert.errors import BackendError
from edgert.values import Feeds, TensorSpec

__all__ = ["plugin"]

_CPU = "CPU"
_XNNPACK = "XNNPACK"
# What the two runtimes raise; SystemError is what tflite-runtime gives under numpy 2.
_FAILURES = (ValueError, RuntimeError, SystemError, TypeError, OSError, MemoryError, ImportError, AttributeError)

# y = relu(x), float32 [1]: the smallest model that makes the probe construct an Interpreter and run it.
_PROBE_MODEL = base64.b64decode(
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAcAAAA0AAAAAMAAAABAAAACAAAAAQABAAEAAAAAQAAABAAAAAMABQAEAAM"
    "AAgABAAMAAAAEAAAADwAAABAAAAARAAAAAEAAAAQAAAAAAAKAAwAAAAIAAQACgAAAAgAAAAMAAAAAQAAAAEAAAABAAAAAAAAAAEA"
    "AAABAAAAAQAAAAAAAAACAAAAMAAAAAQAAADk////CAAAAAwAAAABAAAAeQAAAAEAAAABAAAADAAMAAgAAAAAAAQADAAAAAgAAAAM"
    "AAAAAQAAAHgAAAABAAAAAQAAAAEAAAAQAAAADAAMAAsAAAAAAAQADAAAABMAAAAAAAAT"
)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An input or output tensor; `raw` is its own type, `scale` 0 when it is not quantized."""

    index: int
    spec: TensorSpec
    raw: Any
    scale: float
    zero_point: int

    def encoded(self, array: NDArray[Any]) -> NDArray[Any]:
        if not self.scale:
            return array
        limits = np.iinfo(self.raw)
        steps = np.rint(array / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(np.nan_to_num(steps), limits.min, limits.max), dtype=self.raw)

    def decoded(self, array: NDArray[Any]) -> NDArray[Any]:
        if not self.scale:
            return array
        return (array.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)


class _Session:
    def __init__(self, path: Path, options: SessionOptions) -> None:
        delegates, resolver = _delegates(options)
        runtime = _import()
        try:
            self._interpreter = runtime.Interpreter(
                model_path=str(path),
                num_threads=options.threads,
                experimental_delegates=delegates,
                experimental_op_resolver_type=resolver,
            )
            self._interpreter.allocate_tensors()
            self._takes, self._gives = _tensors(self._interpreter)
        except _FAILURES as e:
            raise BackendError(f"TFLite cannot open {path.name}: {first_line(e)}", hint=_hint(e)) from e
        self.inputs: Sequence[TensorSpec] = tuple(tensor.spec for tensor in self._takes)
        self.outputs: Sequence[TensorSpec] = tuple(tensor.spec for tensor in self._gives)
        self._delegate = options.providers[0] if delegates else _XNNPACK
        if options.providers and _CPU not in options.providers and self.nodes_by_provider().get(_CPU):
            raise BackendError(
                f"{', '.join(options.providers)} does not run every node of {path.name}: {self.nodes_by_provider()}",
                hint=f"add {_CPU} to the providers to allow a part of it on the CPU",
            )

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        check_feeds(self.inputs, feeds)
        try:
            self._resize(feeds)
            for tensor in self._takes:
                self._interpreter.set_tensor(tensor.index, tensor.encoded(feeds[tensor.spec.name]))
            self._interpreter.invoke()
            return {t.spec.name: t.decoded(self._interpreter.get_tensor(t.index)) for t in self._gives}
        except _FAILURES as e:
            raise BackendError(f"TFLite failed: {first_line(e)}") from e

    def nodes_by_provider(self) -> dict[str, int]:
        try:
            return _partition(self._interpreter._get_ops_details(), self._delegate)  # noqa: SLF001 - no public way
        except _FAILURES as e:
            raise BackendError(f"TFLite gives no partition report: {first_line(e)}") from e

    def close(self) -> None:
        del self._interpreter

    def _resize(self, feeds: Feeds) -> None:
        """Give the free axes the sizes of the feeds; costs only when they change."""
        changed = False
        for tensor, now in zip(self._takes, self._interpreter.get_input_details(), strict=True):
            shape = feeds[tensor.spec.name].shape
            if None in tensor.spec.shape and tuple(now["shape"]) != shape:
                self._interpreter.resize_tensor_input(tensor.index, shape, strict=True)
                changed = True
        if changed:
            self._interpreter.allocate_tensors()


class _TFLite:
    formats = ("tflite",)

    def probe(self) -> Availability:
        try:
            runtime = _import()
            interpreter = runtime.Interpreter(model_content=_PROBE_MODEL, num_threads=1)
            interpreter.allocate_tensors()
            interpreter.invoke()
        except BackendError as e:
            return Availability(False, "", e.message)
        except _FAILURES as e:
            return Availability(
                False, _version(), f"an Interpreter cannot be made: {first_line(e)}. {_hint(e)}".strip()
            )
        return Availability(True, _version())

    def open(self, path: Path, options: SessionOptions = DEFAULT_OPTIONS) -> _Session:
        return _Session(path, options)


def _import() -> Any:
    """The module with `Interpreter`: LiteRT's where it is installed, else tflite-runtime's."""
    try:
        from ai_edge_litert import interpreter
    except ImportError as litert:
        try:
            from tflite_runtime import interpreter
        except ImportError as e:
            raise BackendError(
                f"neither ai-edge-litert ({first_line(litert)}) nor tflite-runtime ({first_line(e)}) can be imported",
                hint="install edgert[litert]; or edgert[tflite], with numpy below 2 and Python 3.11 or older",
            ) from e
    return interpreter


def _version() -> str:
    """``<distribution> <version>``: the numbers of the two runtimes cannot be compared."""
    for name in ("ai-edge-litert", "tflite-runtime"):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return ""


def _delegates(options: SessionOptions) -> tuple[list[Any], Any]:
    """The delegates to load and the resolver to use.

    Providers: ``XNNPACK`` and ``CPU`` (the built-in kernels) are there; any other is a delegate whose option
    ``library`` is the path of a shared library; its other options are handed to it.
    """
    runtime = _import()
    wanted = options.providers or (_XNNPACK, _CPU)
    kinds = runtime.OpResolverType
    resolver = kinds.AUTO if _XNNPACK in wanted else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    delegates = []
    for name in wanted:
        if name in (_CPU, _XNNPACK):
            continue
        settings = dict(options.provider_options.get(name, {}))
        library = settings.pop("library", "")
        if not library:
            raise BackendError(
                f"TFLite has no provider {name!r}",
                hint=f"it has {_XNNPACK} and {_CPU}; an external delegate needs the option `library`: its path",
            )
        if not Path(library).is_file():
            raise BackendError(f"delegate {name!r}: there is no file {library}")
        try:
            delegates.append(runtime.load_delegate(library, settings))
        except _FAILURES as e:
            raise BackendError(f"delegate {name!r} cannot be loaded from {library}: {first_line(e)}") from e
    return delegates, resolver


def _tensors(interpreter: Any) -> tuple[list[_Tensor], list[_Tensor]]:
    """Inputs and outputs; named by the signature where the model has one, else by the tensors."""
    takes = [_tensor(row) for row in interpreter.get_input_details()]
    gives = [_tensor(row) for row in interpreter.get_output_details()]
    signatures = list(interpreter.get_signature_list())
    if len(signatures) == 1:
        runner = interpreter.get_signature_runner(signatures[0])
        takes = _renamed(takes, runner.get_input_details())
        gives = _renamed(gives, runner.get_output_details())
    return _distinct(takes, "input"), _distinct(gives, "output")


def _renamed(tensors: list[_Tensor], details: Mapping[str, Mapping[str, Any]]) -> list[_Tensor]:
    names = {int(row["index"]): name for name, row in details.items()}
    if set(names) != {tensor.index for tensor in tensors}:
        return tensors
    return [replace(tensor, spec=replace(tensor.spec, name=names[tensor.index])) for tensor in tensors]


def _distinct(tensors: list[_Tensor], kind: str) -> list[_Tensor]:
    """The tensors with names that are there and differ; a nameless model gets ``input_0``, ``output_1``, ..."""
    names = [tensor.spec.name for tensor in tensors]
    if all(names) and len(set(names)) == len(names):
        return tensors
    return [replace(tensor, spec=replace(tensor.spec, name=f"{kind}_{i}")) for i, tensor in enumerate(tensors)]


def _tensor(row: Mapping[str, Any]) -> _Tensor:
    signature = row["shape_signature"] if len(row["shape_signature"]) else row["shape"]
    shape = tuple(None if size < 0 else int(size) for size in signature)
    dtype = np.dtype(row["dtype"])
    scales = row["quantization_parameters"]["scales"]
    scale, zero_point = 0.0, 0
    if len(scales) == 1 and scales[0] > 0 and dtype.kind in "iu":
        scale, zero_point = float(scales[0]), int(row["quantization_parameters"]["zero_points"][0])
    name = "str" if dtype.kind in "SUO" else ("float32" if scale else dtype.name)
    return _Tensor(int(row["index"]), TensorSpec(str(row["name"]), name, shape), row["dtype"], scale, zero_point)


def _partition(ops: Sequence[Mapping[str, Any]], delegate: str) -> dict[str, int]:
    """How many of the model's own nodes a delegate took over, and how many are left.

    The runtime lists the model's nodes and then one ``DELEGATE`` node per partition. What a partition took over is what
    makes its outputs out of its inputs, and what stores a tensor that leaves no partition otherwise.
    """
    own = [op for op in ops if op["op_name"] != "DELEGATE"]
    maker = {int(tensor): i for i, op in enumerate(own) for tensor in op["outputs"]}
    taken: set[int] = set()
    for part in (op for op in ops if op["op_name"] == "DELEGATE"):
        given = {int(tensor) for tensor in part["inputs"]}
        results = {int(tensor) for tensor in part["outputs"]}
        inside: set[int] = set()
        wanted = [tensor for tensor in results if tensor not in given]
        while wanted:
            node = maker.get(wanted.pop())
            if node is not None and node not in inside:
                inside.add(node)
                wanted += [int(tensor) for tensor in own[node]["inputs"] if int(tensor) not in given]
        hidden = {int(tensor) for node in inside for tensor in own[node]["outputs"]} - results
        inside |= {
            i
            for i, op in enumerate(own)
            if not len(op["outputs"]) and hidden & {int(tensor) for tensor in op["inputs"]}
        }
        taken |= inside
    counts = {delegate: len(taken), _CPU: len(own) - len(taken)}
    return {name: count for name, count in counts.items() if count}


def _hint(error: BaseException) -> str:
    if "_ARRAY_API" in repr(error.__cause__) + repr(error.__context__) + str(error) or isinstance(error, SystemError):
        return "tflite-runtime was built for numpy 1: install numpy below 2, or ai-edge-litert in its place"
    if re.search(r"Didn't find op|unresolved custom op|op for builtin", str(error)):
        return "this runtime is too old for the model, or lacks that operator"
    return ""


plugin = _TFLite()
