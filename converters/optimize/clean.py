"""A smaller graph that computes the same: constants folded, batch norms fused, dead ends dropped (onnxslim)."""

from collections import Counter

import onnx
import onnxslim

from converters import graph
from converters.optimize.normalise import infer_shapes
from converters.quiet import quiet

__all__ = ["clean"]

_FOLD_LIMIT_BYTES = 16 << 20


def clean(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A slimmer copy of `model`, and notes; the graph itself when it cannot be slimmed.

    Inputs and outputs keep their names and free sizes; initializers may be folded and renamed.
    """
    if len(model.graph.node) > graph.NODE_LIMIT:
        return model, (f"clean-up left out: {len(model.graph.node)} operators are more than {graph.NODE_LIMIT}",)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        with quiet():
            slim = onnxslim.slim(copy, size_threshold=_FOLD_LIMIT_BYTES)
    except Exception as e:  # a rewriting library meets graphs it was not written for: the graph itself still runs
        return model, (f"clean-up left out: {type(e).__name__}: {str(e)[:200]}",)
    if slim is None or not _same_face(model, slim):
        return model, ("clean-up left out: it would change the inputs or outputs",)
    del slim.graph.value_info[:]
    del slim.metadata_props[:]
    slim.ClearField("producer_name")
    slim.ClearField("producer_version")
    _flatten_biases(slim.graph)
    return infer_shapes(slim), ()


def _flatten_biases(main: onnx.GraphProto) -> None:
    """Give biases of `Gemm` that are stored as [1, n] the shape [n]: quantizers expect them so."""
    uses = Counter(name for node in main.node for name in node.input)
    biases = {node.input[2] for node in main.node if node.op_type == "Gemm" and len(node.input) > 2}
    for tensor in main.initializer:
        if tensor.name in biases and uses[tensor.name] == 1 and len(tensor.dims) == 2 and tensor.dims[0] == 1:
            del tensor.dims[0]


def _same_face(a: onnx.ModelProto, b: onnx.ModelProto) -> bool:
    return graph.inputs(a) == graph.inputs(b) and [spec.name for spec in graph.outputs(a)] == [
        spec.name for spec in graph.outputs(b)
    ]
