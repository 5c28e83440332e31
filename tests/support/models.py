"""Tiny ONNX models for tests: built in milliseconds, seeded, small enough to reason about."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgert.bundle import create
from edgert.manifest import Artifact, Golden, Manifest, Provenance, Tensor
from edgert.samples import pack_arrays
from edgert.values import digest

__all__ = ["bundle_file", "cnn", "endless", "float_weights", "huge", "mlp", "mlp_answer", "write"]

FEATURES, HIDDEN, CLASSES = 4, 8, 3


def mlp_weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """The parameters of the two-layer network: W1 [8, 4], b1 [8], W2 [3, 8], b2 [3]."""
    rng = np.random.default_rng(seed)
    shapes = {"W1": (HIDDEN, FEATURES), "b1": (HIDDEN,), "W2": (CLASSES, HIDDEN), "b2": (CLASSES,)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def mlp_answer(x: NDArray[np.float32], seed: int = 0) -> NDArray[np.float32]:
    """What the network says, by numpy. x: float32 [batch, 4]; returns float32 [batch, 3]."""
    w = mlp_weights(seed)
    return np.asarray(np.maximum(x @ w["W1"].T + w["b1"], 0) @ w["W2"].T + w["b2"], dtype=np.float32)


def mlp(seed: int = 0, *, batch: int | str = "N") -> onnx.ModelProto:
    """Input `x` float32 [batch, 4] - Gemm - Relu - Gemm - output `scores` float32 [batch, 3]."""
    return _model(
        [
            helper.make_node("Gemm", ["x", "W1", "b1"], ["h"], transB=1),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "W2", "b2"], ["scores"], transB=1),
        ],
        ("x", [batch, FEATURES]),
        ("scores", [batch, CLASSES]),
        mlp_weights(seed),
    )


def cnn(seed: int = 0) -> onnx.ModelProto:
    """Input `image` float32 [N, 1, 8, 8] - Conv3x3(4) - Relu - MaxPool2 - Flatten - Gemm - output `scores` [N, 3]."""
    rng = np.random.default_rng(seed)
    weights = {
        "K": rng.standard_normal((4, 1, 3, 3), dtype=np.float32),
        "k": rng.standard_normal(4, dtype=np.float32),
        "W": rng.standard_normal((CLASSES, 64), dtype=np.float32),
        "b": rng.standard_normal(CLASSES, dtype=np.float32),
    }
    return _model(
        [
            helper.make_node("Conv", ["image", "K", "k"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "W", "b"], ["scores"], transB=1),
        ],
        ("image", ["N", 1, 8, 8]),
        ("scores", ["N", CLASSES]),
        weights,
    )


def huge(elements: int) -> onnx.ModelProto:
    """A few hundred bytes that fill `elements` floats when they run: input `x` [1] - output `y` [1]."""
    shape = numpy_helper.from_array(np.array([elements], np.int64), "shape")
    one = numpy_helper.from_array(np.array([1.5], np.float32), "value")
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mul", ["whole", "shape"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["filled"], value=one),
        helper.make_node("ReduceSum", ["filled"], ["sum"], keepdims=1),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    return _finished(nodes, ("x", [1]), ("y", [1]), [shape])


def endless() -> onnx.ModelProto:
    """A loop of 2**62 steps: input `x` [1] - output `y` [1]."""
    state = [
        helper.make_tensor_value_info("step", TensorProto.INT64, []),
        helper.make_tensor_value_info("again", TensorProto.BOOL, []),
        helper.make_tensor_value_info("before", TensorProto.FLOAT, [1]),
    ]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["again"], ["more"]),
            helper.make_node("Sin", ["before"], ["after"]),
        ],
        "body",
        state,
        [
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [1]),
        ],
    )
    constants = [
        numpy_helper.from_array(np.array(2**62, np.int64), "steps"),
        numpy_helper.from_array(np.array(True), "yes"),
    ]
    loop = helper.make_node("Loop", ["steps", "yes", "x"], ["y"], body=body)
    return _finished([loop], ("x", [1]), ("y", [1]), constants)


def write(model: onnx.ModelProto, path: Path) -> Path:
    """The model as a file."""
    path.write_bytes(model.SerializeToString())
    return path


def bundle_file(
    path: Path, *, model: bytes | None = None, format_: str = "onnx", tolerance: float = 1e-4, shift: float = 0.0
) -> Path:
    """A bundle of the two-layer network with three golden vectors.

    Args:
        model: another artifact in its place.
        shift: added to the golden outputs, to make a trial fail.
    """
    data = model if model is not None else mlp().SerializeToString()
    x = np.random.default_rng(1).random((3, 1, FEATURES), dtype=np.float32)
    scores = np.stack([mlp_answer(vector) for vector in x]) + np.float32(shift)
    golden = pack_arrays({"input.x": x, "output.scores": scores})
    parts = [("infer", format_, f"model.{format_}", data, "float32"), ("golden", "npz", "golden.npz", golden, "")]
    manifest = Manifest(
        model="tiny",
        profile="generic-cpu",
        inputs=(Tensor(name="x", dtype="float32", shape=(None, FEATURES)),),
        outputs=(Tensor(name="scores", dtype="float32", shape=(None, CLASSES)),),
        artifacts=tuple(
            Artifact.model_validate(
                {"role": role, "format": kind, "file": file, "digest": digest(content), "size_bytes": len(content),
                 "precision": precision}
            )
            for role, kind, file, content, precision in parts
        ),
        golden=Golden(count=len(x), tolerance={"scores": tolerance}),
        provenance=Provenance(source=digest(data), recipe=digest(b"recipe"), tools={"test": "1"}),
    )  # fmt: skip
    create(path, manifest, {digest(content): content for _, _, _, content, _ in parts})
    return path


def _model(
    nodes: list[onnx.NodeProto],
    taken: tuple[str, list[int | str]],
    given: tuple[str, list[int | str]],
    weights: dict[str, NDArray[np.float32]],
) -> onnx.ModelProto:
    return _finished(nodes, taken, given, [numpy_helper.from_array(array, name) for name, array in weights.items()])


def _finished(
    nodes: list[onnx.NodeProto],
    taken: tuple[str, list[int | str]],
    given: tuple[str, list[int | str]],
    initializers: list[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(taken[0], TensorProto.FLOAT, taken[1])],
        [helper.make_tensor_value_info(given[0], TensorProto.FLOAT, given[1])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def float_weights(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """The float32 initializers, by name: what `--weights` may replace."""
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
