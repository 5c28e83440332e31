"""Static 8-bit: activations uint8 per tensor from observed ranges, weights int8 per channel.

Weights take 7 bits unless the profile promises kernels that do not saturate: on x86 without VNNI the sum of two
products u8 x s8 overflows its 16-bit lane.
"""

from collections import Counter
from typing import Any, Literal

import onnx
from pydantic import BaseModel, ConfigDict

from converters import graph
from converters.quantize.base import Precision, Quantization, Range, Ranges, WeightRule
from edgert.errors import CheckError
from edgert.profiles import Profile

__all__ = ["affine", "plugin"]

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Operators whose kernels compute on 8-bit integers between the weighted ones. Softmax and the normalisations stay
# float: they are cheap, and eight bits of a probability lose the order of the classes.
_PASSING = frozenset(
    {
        "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul", "Pad",
        "Relu", "Reshape", "Resize", "Sigmoid", "Split", "Squeeze", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_RECTIFIERS = frozenset({"Relu", "Clip"})
_LOWEST_OPSET = 13


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    weight_bits: Literal[7, 8] = 7
    per_channel: bool = True


class _StaticInt8:
    precision = "int8"
    observer = "minmax"
    Options: type[BaseModel] = _Options

    def options_for(self, profile: Profile) -> _Options:
        return _Options(weight_bits=7 if profile.reduce_range else 8)

    def observed(self, model: onnx.ModelProto) -> tuple[str, ...]:
        types = graph.element_types(model)
        stored = {tensor.name for tensor in model.graph.initializer}
        names = {
            name: None
            for node in _quantizable(model)
            for name in (*node.input, *node.output)
            if name and name not in stored and types.get(name) == onnx.TensorProto.FLOAT
        }
        return tuple(names)

    def plan(self, model: onnx.ModelProto, ranges: Ranges, options: Any) -> Precision:
        chosen: _Options = options
        if graph.default_opset(model) < _LOWEST_OPSET:
            raise CheckError(f"opset {graph.default_opset(model)} knows no per-channel quantization")
        nodes = _quantizable(model)
        if not any(node.op_type in _WEIGHTED for node in nodes):
            raise CheckError("the graph has no convolution or matrix product with constant weights")
        tightened = _behind_rectifiers(model, ranges, {node.name for node in nodes})
        activations = {name: affine(found) for name, found in tightened.items()}
        missing = [name for name in self.observed(model) if name not in activations]
        if missing:
            raise CheckError(f"{len(missing)} tensors took no finite values on the calibration samples")
        rule = WeightRule(chosen.weight_bits, chosen.per_channel)
        return Precision(self.precision, activations, rule, tuple(node.name for node in nodes))


def affine(found: Range) -> Quantization:
    """The uint8 quantization that covers a range, with zero stored exactly.

    Args:
        found: widened to contain zero first: padding and rectifiers need an exact zero.
    """
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    scale = (high - low) / 255
    if scale < 1e-30:
        return Quantization("uint8", 1.0, 0)
    return Quantization("uint8", scale, round(-low / scale))


def _quantizable(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    nodes = list(model.graph.node)
    if len(nodes) > graph.NODE_LIMIT:
        return []
    types = graph.element_types(model) | {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    stored = {tensor.name for tensor in model.graph.initializer}
    return [node for node in nodes if _fits(node, types, stored)]


def _fits(node: onnx.NodeProto, types: dict[str, int], stored: set[str]) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    floats = types.get(node.input[0] if node.input else "") == onnx.TensorProto.FLOAT and all(
        types.get(name) == onnx.TensorProto.FLOAT for name in node.output if name
    )
    if node.op_type in _WEIGHTED:
        return (
            floats
            and len(node.input) > 1
            and node.input[1] in stored
            and types[node.input[1]] == onnx.TensorProto.FLOAT
        )
    return floats and node.op_type in _PASSING


def _behind_rectifiers(model: onnx.ModelProto, ranges: Ranges, nodes: set[str]) -> dict[str, Range]:
    """Ranges where a value that only feeds a rectifier has the range behind it: the rest is cut off anyway."""
    uses = Counter(name for node in model.graph.node for name in node.input)
    results = {value.name for value in model.graph.output}
    tightened = dict(ranges)
    for node in reversed(model.graph.node):
        if node.op_type not in _RECTIFIERS or node.name not in nodes:
            continue
        before, after = node.input[0], node.output[0]
        if node.op_type == "Relu" and after in ranges:
            tightened[after] = Range(max(tightened[after].low, 0.0), max(tightened[after].high, 0.0))
        if uses[before] == 1 and before not in results and before in ranges and after in ranges:
            tightened[before] = tightened[after]
    return tightened


plugin = _StaticInt8()
