"""ONNX: float as it is, 8-bit with QuantizeLinear and DequantizeLinear pairs, written by onnxruntime.quantization."""

import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import add_infer_metadata

from converters import graph
from converters.quantize.base import Precision
from converters.quiet import quiet
from edgert.errors import CheckError
from edgert.profiles import Profile

__all__ = ["plugin"]

# First release of ONNX Runtime with each version of the standard operators.
_RUNTIMES = {17: "1.12", 18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18"}


class _Onnx:
    def emit(self, model: onnx.ModelProto, precision: Precision, profile: Profile) -> bytes:
        written = onnx.ModelProto()
        written.CopyFrom(model)
        if precision.weights is not None:
            written = _quantized(written, precision)
        del written.graph.value_info[:]
        return graph.serialize(written)

    def min_runtime(self, artifact: bytes) -> dict[str, str]:
        opset = graph.default_opset(onnx.load_model_from_string(artifact))
        known = _RUNTIMES.get(max(opset, min(_RUNTIMES)), ".".join(onnxruntime.__version__.split(".")[:2]))
        return {"onnxruntime": known}


def _quantized(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    rule = precision.weights
    if rule is None or not precision.nodes:
        raise CheckError("nothing is to be quantized")
    add_infer_metadata(model)  # else the quantizer goes through temporary files to infer the types again
    operators = {node.op_type for node in model.graph.node if node.name in set(precision.nodes)}
    try:
        with quiet():
            quantizer = QDQQuantizer(
                model,
                per_channel=rule.per_channel,
                reduce_range=rule.bits == 7,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=dict.fromkeys(precision.activations, _PLACEHOLDER),
                nodes_to_quantize=list(precision.nodes),
                nodes_to_exclude=[],
                op_types_to_quantize=sorted(operators),
                extra_options={"TensorQuantOverrides": _overrides(precision)},
            )
            quantizer.quantize_model()
            quantizer.model.clean_initializers()
            quantizer.model.topological_sort()
    except Exception as e:  # a rewriting library meets graphs it was not written for: float is still there
        raise CheckError(f"the quantizer gave up: {type(e).__name__}: {str(e)[:200]}") from e
    written: onnx.ModelProto = quantizer.model.model
    if not any(tensor.data_type == onnx.TensorProto.INT8 for tensor in written.graph.initializer):
        raise CheckError("the quantizer left every weight in float")
    del written.metadata_props[:]
    written.ClearField("producer_name")
    written.ClearField("producer_version")
    _shorten_names(written.graph)
    return written


def _shorten_names(emitted: onnx.GraphProto) -> None:
    """Give everything inside the graph a short name: with scales and zero points, names are often a third of a file."""
    if any(attribute.HasField("g") or attribute.graphs for node in emitted.node for attribute in node.attribute):
        return  # branches refer to outer values by name
    kept = {value.name for value in (*emitted.input, *emitted.output)}
    short: dict[str, str] = {name: name for name in ("", *kept)}
    fresh = (name for name in map("{:x}".format, itertools.count()) if name not in kept)

    def renamed(name: str) -> str:
        if name not in short:
            short[name] = next(fresh)
        return short[name]

    for tensor in emitted.initializer:
        tensor.name = renamed(tensor.name)
    for node in emitted.node:
        node.ClearField("name")
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    del emitted.value_info[:]
    del emitted.quantization_annotation[:]


# The quantizer wants a range for every tensor even where scale and zero point are given.
_PLACEHOLDER = TensorData(lowest=np.float32(0), highest=np.float32(1))


def _overrides(precision: Precision) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [
            {
                "quant_type": QuantType.QUInt8,
                "scale": np.array(stored.scale, dtype=np.float32),
                "zero_point": np.array(stored.zero_point, dtype=np.uint8),
            }
        ]
        for name, stored in precision.activations.items()
    }


plugin = _Onnx()
