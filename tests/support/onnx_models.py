"""Odd ONNX models for tests of the converters: old opsets, branches, functions, external data, broken weights."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["branching", "chain", "old_cnn", "one_operator", "with_external_data", "with_function"]


def one_operator(op_type: str, *, domain: str = "", opset: int = 17) -> onnx.ModelProto:
    """Input `x` float32 [N, 4] - one operator - output `y` float32 [N, 4]; not checked."""
    node = helper.make_node(op_type, ["x"], ["y"], domain=domain)
    return _model([node], [], opset, {domain: 1} if domain else {})


def chain(length: int) -> onnx.ModelProto:
    """`length` times Relu, one behind the other."""
    names = ["x", *(f"t{i}" for i in range(length - 1)), "y"]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(names)]
    return _model(nodes, [], 17)


def old_cnn() -> onnx.ModelProto:
    """Opset 8, IR 3, weights among the inputs, an unused domain; `image` [N, 1, 8, 8] to `scores` [N, 3]."""
    rng = np.random.default_rng(0)
    weights = {
        "K": rng.standard_normal((4, 1, 3, 3), dtype=np.float32),
        "W": rng.standard_normal((4, 3), dtype=np.float32),
        "b": rng.standard_normal(3, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "K"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "W", "b"], ["scores"]),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in weights.items()]
    graph = helper.make_graph(
        nodes,
        "old",
        inputs,
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 8), helper.make_opsetid("ai.onnx.training", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=3)


def branching(value: float = 1.0) -> onnx.ModelProto:
    """An `If` whose branches hold the constant `value`: input `x` [N, 4], output `y` [N, 4]."""
    branches = []
    for name, factor in (("then", value), ("else", 2.0)):
        constant = numpy_helper.from_array(np.full(4, factor, np.float32), f"{name}.constant")
        node = helper.make_node("Mul", ["x", constant.name], [f"{name}.y"])
        out = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, ["N", 4])
        branches.append(helper.make_graph([node], name, [], [out], [constant]))
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    return _model(nodes, [numpy_helper.from_array(np.float32(0), "zero")], 17)


def with_function() -> onnx.ModelProto:
    """One operator of the domain `local`, defined by a function inside the model."""
    model = one_operator("Doubled", domain="local")
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("local", "Doubled", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    return model


def with_external_data(
    path: Path,
    *,
    location: str = "weights.bin",
    offset: str = "0",
    length: str = "16",
    stored: bytes | None = b"\0" * 16,
) -> Path:
    """A model file whose only weight, float32 [4], lies in another file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        weight.external_data.add(key=key, value=value)
    model = _model([helper.make_node("Add", ["x", "w"], ["y"])], [weight], 17)
    path.write_bytes(model.SerializeToString())
    if stored is not None:
        (path.parent / "weights.bin").write_bytes(stored)
    return path


def _model(
    nodes: Sequence[onnx.NodeProto],
    stored: Sequence[onnx.TensorProto],
    opset: int,
    domains: dict[str, int] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        stored,
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in {"": opset, **(domains or {})}.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
