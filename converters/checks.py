"""What a graph must fulfil before any runtime sees it: known operators, finite weights, plain inputs and outputs."""

from pathlib import Path

import numpy as np
import onnx

from converters import graph
from edgert.errors import ModelError

__all__ = ["check"]

_RUNTIME_DOMAINS = frozenset(
    {
        "com.microsoft",
        "com.microsoft.nchwc",
        "com.microsoft.experimental",
        "ai.onnx.ml",
        "ai.onnx.training",
        "ai.onnx.preview",
        "ai.onnx.preview.training",
    }
)
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


def check(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a graph that cannot be deployed, with the reason.

    Raises:
        ModelError: an unknown operator, a stored tensor that is damaged or not finite, inputs or outputs that are no
            tensors of numbers.
    """
    _check_operators(model, path)
    _check_values(model, path)
    graph.inputs(model)
    graph.outputs(model)


def _check_operators(model: onnx.ModelProto, path: Path) -> None:
    opset = graph.default_opset(model)
    own = {(function.domain, function.name) for function in model.functions}
    for node in graph.nodes(model):
        if (node.domain, node.op_type) in own:
            continue
        standard = node.domain in ("", "ai.onnx")
        known = onnx.defs.has(node.op_type, opset, "") if standard else node.domain in _RUNTIME_DOMAINS
        if not known:
            domain = "the standard domain" if standard else f"domain {node.domain[:80]!r}"
            version = f" in opset {opset}" if standard else ""
            raise ModelError(
                f"{path} uses operator {node.op_type[:80]!r} of {domain}, which no runtime here knows{version}",
                hint="replace it by standard operators, or export it as a function inside the model",
            )


def _check_values(model: onnx.ModelProto, path: Path) -> None:
    for tensor in graph.tensors(model):
        if tensor.data_type in _FLOATS and not np.isfinite(graph.array(tensor)).all():
            raise ModelError(
                f"{path}: weight {tensor.name[:80]!r} holds NaN or infinite values",
                hint="the training diverged or the file is damaged; export a healthy checkpoint",
            )
