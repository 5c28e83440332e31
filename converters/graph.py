"""Reading a model: its nodes and tensors (those inside branches too), its inputs, its weights, its size in numbers."""

from collections import Counter
from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import numpy_helper

from edgert.errors import ModelError
from edgert.values import TensorSpec

__all__ = [
    "NODE_LIMIT",
    "PROTOBUF_LIMIT_BYTES",
    "array",
    "default_opset",
    "element_types",
    "inputs",
    "macs",
    "nodes",
    "operators",
    "outputs",
    "parameters",
    "serialize",
    "tensors",
]

NODE_LIMIT = 5000
"""A larger graph is not rewritten: what rewrites it takes time that grows with the square of its nodes."""

PROTOBUF_LIMIT_BYTES = 2 << 30
"""No ONNX file can be larger."""


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of branches, loop bodies and functions included (the file format bounds how deep they nest)."""
    for owner in (model.graph, *model.functions):
        yield from _nodes(owner.node)


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers and constants, wherever `nodes` looks."""
    yield from _stored(model.graph)
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (*attribute.sparse_tensors, *([attribute.sparse_tensor] if _sparse(attribute) else [])):
                yield from (sparse.values, sparse.indices)
            for branch in _branches(attribute):
                yield from _stored(branch)


def _nodes(owned: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in owned:
        yield node
        for attribute in node.attribute:
            for branch in _branches(attribute):
                yield from _nodes(branch.node)


def _stored(owner: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from owner.initializer
    for sparse in owner.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def _branches(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]


def _sparse(attribute: onnx.AttributeProto) -> bool:
    return bool(attribute.HasField("sparse_tensor"))


def array(tensor: onnx.TensorProto) -> NDArray[Any]:
    """The values of a stored tensor.

    Raises:
        ModelError: its data does not fit its shape or type.
    """
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError, OverflowError) as e:
        raise ModelError(
            f"tensor {tensor.name[:80]!r} of the model is damaged: {e}", hint="export the model again"
        ) from e


def inputs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """The inputs a caller feeds (initializers that are listed as inputs left out)."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return tuple(_spec(value, "input") for value in model.graph.input if value.name not in stored)


def outputs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """The outputs of the graph."""
    return tuple(_spec(value, "output") for value in model.graph.output)


def default_opset(model: onnx.ModelProto) -> int:
    """The version of the standard operator set; 1 when none is named."""
    return next((row.version for row in model.opset_import if row.domain in ("", "ai.onnx")), 1)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value of the main graph that shape inference could tell, by name."""
    graph = model.graph
    return {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.HasField("tensor_type")
    }


def serialize(model: onnx.ModelProto) -> bytes:
    """The bytes of a model; the same model gives the same bytes.

    Raises:
        ModelError: it is larger than the file format allows.
    """
    try:
        data: bytes = model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as e:
        raise ModelError(f"the model cannot be stored: {e}", hint="models above 2 GiB do not fit into one file") from e
    return data


# Figures for the index


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """How often each operator occurs; names of other domains than the standard one carry the domain."""
    counted = Counter(f"{node.domain}:{node.op_type}" if node.domain else node.op_type for node in nodes(model))
    return dict(sorted(counted.items()))


def parameters(model: onnx.ModelProto) -> int:
    """Number of float values stored in the graph."""
    return sum(
        prod(tensor.dims)
        for tensor in tensors(model)
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    )


def macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of convolutions and matrix products for a batch of one; free sizes count as 1."""
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes = stored | {
        value.name: tuple(max(int(size.dim_value), 1) for size in value.type.tensor_type.shape.dim)
        for value in (*model.graph.value_info, *model.graph.output)
    }
    total = 0
    for node in model.graph.node:
        weight, result = (shapes.get(node.input[1]) if len(node.input) > 1 else None), shapes.get(node.output[0])
        if not weight or not result:
            continue
        if node.op_type == "Conv":
            total += prod(result) * prod(weight[1:])
        elif node.op_type == "Gemm":
            total += prod(result) * weight[1 if _transposed(node) else 0]
        elif node.op_type == "MatMul":
            total += prod(result) * weight[-2 if len(weight) > 1 else 0]
    return total


def _transposed(gemm: onnx.NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in gemm.attribute)


def _spec(value: onnx.ValueInfoProto, kind: str) -> TensorSpec:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise ModelError(
            f"{kind} {value.name[:80]!r} is not a tensor", hint="sequences, maps and optionals cannot travel"
        )
    if not tensor.HasField("shape"):
        raise ModelError(
            f"the model does not say the rank of {kind} {value.name[:80]!r}", hint="export it with known ranks"
        )
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except (KeyError, ValueError, TypeError) as e:
        raise ModelError(
            f"{kind} {value.name[:80]!r} has an unknown element type {tensor.elem_type}", hint="export it again"
        ) from e
    if tensor.elem_type == onnx.TensorProto.STRING or dtype.kind not in "fiub":
        raise ModelError(f"{kind} {value.name[:80]!r} holds no plain numbers", hint="keep text outside the model")
    sizes = (
        int(size.dim_value) if size.HasField("dim_value") and size.dim_value >= 0 else None for size in tensor.shape.dim
    )
    return TensorSpec(value.name, dtype.name, tuple(sizes))
