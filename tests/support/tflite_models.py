"""Tiny TFLite models for tests, written with the flatbuffer schema that LiteRT brings: no TensorFlow."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.models import CLASSES, FEATURES, HIDDEN, mlp_weights

__all__ = ["mlp", "relu", "write"]


@dataclass
class _Writer:
    """Collects the tables of one model; tensors are referred to by index."""

    buffers: list[Any] = field(default_factory=list)
    tensors: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    codes: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._buffer(b"")

    def tensor(
        self,
        name: str,
        shape: list[int],
        data: NDArray[Any] | None = None,
        *,
        kind: str = "FLOAT32",
        signature: list[int] | None = None,
        quantized: tuple[float, int] | None = None,
    ) -> int:
        from ai_edge_litert import schema_py_generated as schema

        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name.encode(), shape, getattr(schema.TensorType, kind)
        tensor.shapeSignature = signature
        tensor.buffer = 0 if data is None else self._buffer(data.tobytes())
        if quantized is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [quantized[0]], [quantized[1]]
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def operator(self, name: str, inputs: list[int], outputs: list[int], options: Any = None) -> None:
        from ai_edge_litert import schema_py_generated as schema

        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = 1
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.codes)
        operator.inputs, operator.outputs = inputs, outputs
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.codes.append(code)
        self.operators.append(operator)

    def finish(self, inputs: list[int], outputs: list[int]) -> bytes:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema

        graph = schema.SubGraphT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = self.tensors, self.operators, inputs, outputs
        model = schema.ModelT()
        model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], self.buffers, self.codes
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _buffer(self, data: bytes) -> int:
        from ai_edge_litert import schema_py_generated as schema

        buffer = schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8) if data else None
        self.buffers.append(buffer)
        return len(self.buffers) - 1


def relu() -> bytes:
    """y = relu(x), float32 [1]: the model inside the backend's probe."""
    writer = _Writer()
    x, y = writer.tensor("x", [1]), writer.tensor("y", [1])
    writer.operator("RELU", [x], [y])
    return writer.finish([x], [y])


def mlp(seed: int = 0, *, dynamic: bool = True, quantized_io: bool = False, zero_point: int = 0) -> bytes:
    """The network of `tests.support.models.mlp`: input `x` [batch, 4], output `scores` [batch, 3].

    Args:
        dynamic: the batch axis is free, else it is 1.
        quantized_io: input int8 with scale 1/64, output int8 with scale 1/8, between them float.
        zero_point: of that output. 2**31 fits in no int8: LiteRT 2.3 dies of a segmentation fault when it loads that.
    """
    from ai_edge_litert import schema_py_generated as schema

    writer = _Writer()
    weights = mlp_weights(seed)
    free = {"signature": None} if not dynamic else {}

    def activation(name: str, width: int, **more: Any) -> int:
        return writer.tensor(name, [1, width], **({"signature": [-1, width]} | free | more))

    def dense(source: int, target: int, index: int, relu: bool) -> None:
        options = schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = getattr(schema.ActivationFunctionType, "RELU" if relu else "NONE")
        w, b = weights[f"W{index}"], weights[f"b{index}"]
        parts = [writer.tensor(f"W{index}", list(w.shape), w), writer.tensor(f"b{index}", list(b.shape), b)]
        writer.operator("FULLY_CONNECTED", [source, *parts], [target], options)

    quantized = {"kind": "INT8"}
    x = activation("x", FEATURES, **(quantized | {"quantized": (1 / 64, 0)} if quantized_io else {}))
    scores = activation("scores", CLASSES, **(quantized | {"quantized": (1 / 8, zero_point)} if quantized_io else {}))
    inner, outer = x, scores
    if quantized_io:
        inner, outer = activation("x_float", FEATURES), activation("scores_float", CLASSES)
        writer.operator("DEQUANTIZE", [x], [inner])
    hidden = activation("h", HIDDEN)
    dense(inner, hidden, 1, relu=True)
    dense(hidden, outer, 2, relu=False)
    if quantized_io:
        writer.operator("QUANTIZE", [outer], [scores])
    return writer.finish([x], [scores])


def write(data: bytes, path: Path) -> Path:
    """The model as a file."""
    path.write_bytes(data)
    return path
