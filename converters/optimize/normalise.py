"""One canonical form for every imported graph: recent opset, no initializers among the inputs, every name kept."""

import onnx
from onnx import shape_inference, version_converter

from converters import graph

__all__ = ["OPSET", "infer_shapes", "normalise"]

OPSET = 17
"""Lowest opset of a normalised graph: per-channel QDQ needs 13, and old operators have no kernels."""

_IR_VERSION = 8


def normalise(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A copy of `model` in canonical form, and notes on what could not be done.

    Names of inputs, outputs and initializers stay: `--weights` goes by them.
    """
    model = _copy(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    fed = [value for value in model.graph.input if value.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(fed)
    model.ir_version = max(model.ir_version, _IR_VERSION)
    _drop_unused_domains(model)
    notes: tuple[str, ...] = ()
    if graph.default_opset(model) < OPSET:
        model, notes = _raised(model)
    _name_nodes(model)
    for row in model.opset_import:
        row.domain = "" if row.domain == "ai.onnx" else row.domain
    for field in ("producer_name", "producer_version", "domain", "doc_string"):
        model.ClearField(field)
    del model.metadata_props[:]
    del model.training_info[:]
    return infer_shapes(model), notes


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with the types and shapes of its values, as far as they can be told."""
    try:
        return shape_inference.infer_shapes(model)
    except (shape_inference.InferenceError, RuntimeError, ValueError):
        return model  # the runtime has the last word; untyped values are simply not quantized


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _raised(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    before = graph.default_opset(model)
    kept = {tensor.name for tensor in model.graph.initializer}
    try:
        raised = version_converter.convert_version(model, OPSET)
    except (version_converter.ConvertError, shape_inference.InferenceError, RuntimeError, ValueError) as e:
        reason = (str(e).strip().splitlines() or ["no reason given"])[0][:200]
        return model, (f"opset {before} could not be raised to {OPSET}: {reason}",)
    if not kept <= {tensor.name for tensor in raised.graph.initializer}:
        return model, (f"opset {before} was not raised to {OPSET}: that would lose weights",)
    return raised, ()


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    used = {node.domain for node in graph.nodes(model)} | {function.domain for function in model.functions}
    used |= {"", "ai.onnx"}
    kept = [row for row in model.opset_import if row.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _name_nodes(model: onnx.ModelProto) -> None:
    taken: set[str] = set()
    for i, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{i}"
            while node.name in taken:
                node.name += "_"
        taken.add(node.name)
