"""The forward graph as the autodiff wants it: one output, a static batch, every shape known, constants apart."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference, version_converter
from onnx.reference import ReferenceEvaluator

from converters.training.rules.base import Shape, attributes
from edgert.backends.base import first_line
from edgert.errors import ModelError

__all__ = ["OPSET", "Forward", "prepare"]

OPSET: Final = 18
"""The lowest operator set that has everything the gradients need (axes as inputs, `ScatterElements` with addition)."""

_PASSES: Final = {"Identity", "Dropout"}
_FOLD_LIMIT: Final = 4096


@dataclass(frozen=True, slots=True)
class Forward:
    """A graph ready for differentiation.

    Args:
        nodes: in topological order, only those the logits need.
        inputs: data inputs with static shapes.
        weights: float32 initializers by name: what may be trained.
        constants: every other constant.
        shapes: of every tensor.
        logits: name of the first output, taken before a final softmax.
        softmax: whether a final softmax was taken off.
        opset: of the default operator domain.
    """

    nodes: list[onnx.NodeProto]
    inputs: list[onnx.ValueInfoProto]
    weights: dict[str, NDArray[np.float32]]
    constants: dict[str, NDArray[Any]]
    shapes: dict[str, Shape]
    logits: str
    softmax: bool
    opset: int


def prepare(model: onnx.ModelProto, batch_size: int) -> Forward:
    """The forward graph of `model` for batches of `batch_size` rows.

    Raises:
        ModelError: a foreign operator domain, a free axis other than the batch, or a shape that cannot be worked out.
    """
    graph = _Graph(_raised(model), batch_size)
    graph.simplify()
    softmax = graph.cut_softmax()
    graph.prune([graph.logits])
    graph.simplify()
    return graph.finish(softmax)


def _raised(model: onnx.ModelProto) -> onnx.ModelProto:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    used = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if used:
        raise ModelError(
            f"operators of the domain {', '.join(sorted(used))} have no gradient rule",
            hint="export the model with standard ONNX operators",
        )
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    keep = [entry for entry in copy.opset_import if entry.domain in ("", "ai.onnx")]
    del copy.opset_import[:]
    copy.opset_import.extend(keep)
    if opsets.get("", opsets.get("ai.onnx", 1)) >= OPSET:
        return copy
    try:
        return version_converter.convert_version(copy, OPSET)
    except (RuntimeError, ValueError) as e:
        raise ModelError(
            f"the model cannot be raised to operator set {OPSET}: {first_line(e)}",
            hint=f"export it with operator set {OPSET} or later",
        ) from e


class _Graph:
    """Working state of `prepare`."""

    def __init__(self, model: onnx.ModelProto, batch_size: int) -> None:
        if not model.graph.output:
            raise ModelError("the model has no output")
        self._model = model
        self._batch = batch_size
        self._opset = model.opset_import[0].version
        self._values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._initializers = list(self._values)
        self._nodes = list(model.graph.node)
        self._inputs = [info for info in model.graph.input if info.name not in self._values]
        self._shapes: dict[str, Shape] = {}
        self._types: dict[str, int] = {}
        self.logits = model.graph.output[0].name
        self._set_batch()

    def _set_batch(self) -> None:
        declared = set()
        for info in self._inputs:
            dims = info.type.tensor_type.shape.dim
            if not len(dims):
                raise ModelError(f"input {info.name!r} has no batch axis", hint="its first axis must be the batch")
            free = [i for i, dim in enumerate(dims) if i and not dim.dim_value]
            if free:
                raise ModelError(
                    f"input {info.name!r} has a free size in axis {free[0]}", hint="fix every axis but the batch"
                )
            declared.add(dims[0].dim_value)
            dims[0].dim_value = self._batch
        self._spread_batch(max(declared, default=0))

    def _spread_batch(self, declared: int) -> None:
        """Make the targets of `Reshape` that hold a fixed batch size hold the new one."""
        if not declared or declared == self._batch:
            return
        data = {info.name for info in self._inputs}
        for node in self._nodes:
            if not data.intersection(node.input):
                continue
            data.update(node.output)
            target = self._values.get(node.input[1]) if node.op_type == "Reshape" else None
            if target is not None and target.size and target[0] == declared:
                name = self._fresh(f"{node.input[1]}.batch")
                self._values[name] = np.concatenate([np.array([self._batch], np.int64), target[1:]])
                node.input[1] = name

    def simplify(self) -> None:
        """Take out nodes that compute nothing or only shapes, until nothing changes."""
        while True:
            self._infer()
            before = len(self._nodes)
            alias: dict[str, str] = {}
            kept = []
            for node in self._nodes:
                for i, name in enumerate(node.input):
                    node.input[i] = alias.get(name, name)
                if self._passes(node):
                    alias[node.output[0]] = node.input[0]
                elif not self._fold(node):
                    kept.append(node)
            self._nodes = kept
            self.logits = alias.get(self.logits, self.logits)
            if len(kept) == before:
                return

    def _passes(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "Cast" and self._types.get(node.input[0], 0) == attributes(node)["to"]:
            return True
        return node.op_type in _PASSES and not any(node.output[1:])

    def _fold(self, node: onnx.NodeProto) -> bool:
        """Whether the node's output is a small constant by now; it is kept in that case."""
        if node.op_type == "Constant":
            self._values[node.output[0]] = _evaluated(node, {})
            return True
        if node.op_type == "Shape" and node.input[0] in self._shapes:
            attrs = attributes(node)
            shape = self._shapes[node.input[0]][attrs.get("start", 0) : attrs.get("end", None)]
            self._values[node.output[0]] = np.array(shape, np.int64)
            return True
        feeds = {name: self._values.get(name) for name in node.input if name}
        if not feeds or any(value is None or self._may_learn(name) for name, value in feeds.items()):
            return False
        if len(node.output) != 1 or prod(self._shapes.get(node.output[0], (_FOLD_LIMIT + 1,))) > _FOLD_LIMIT:
            return False
        try:
            self._values[node.output[0]] = _evaluated(node, feeds)
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            return False
        return True

    def _may_learn(self, name: str) -> bool:
        return name in self._initializers and self._values[name].dtype.kind == "f"

    def cut_softmax(self) -> bool:
        """Take a final softmax off: the loss is taken from what goes into it."""
        last = next((node for node in self._nodes if self.logits in node.output), None)
        if last is None or last.op_type not in ("Softmax", "LogSoftmax"):
            return False
        shape = self._shapes.get(last.input[0], ())
        axis = int(attributes(last).get("axis", -1)) % max(1, len(shape))
        if any(size != 1 for i, size in enumerate(shape) if i not in (0, axis)):
            raise ModelError(
                f"the final softmax works on one of several axes of {shape}", hint="give one row of scores per sample"
            )
        self.logits = last.input[0]
        return True

    def prune(self, outputs: Iterable[str]) -> None:
        """Keep only what `outputs` need."""
        needed = set(outputs)
        kept = []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        self._nodes = kept[::-1]
        self._inputs = [info for info in self._inputs if info.name in needed]

    def _infer(self) -> None:
        """Work out shapes and element types from scratch."""
        bare = [onnx.ValueInfoProto(name=self.logits)]
        graph = helper.make_graph(self._nodes, "forward", self._inputs, bare)
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in self._values.items())
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self._opset)])
        try:
            inferred = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
        except (shape_inference.InferenceError, RuntimeError, ValueError) as e:
            raise ModelError(f"the shapes or types of the model contradict each other: {first_line(e)}") from e
        self._shapes = {name: value.shape for name, value in self._values.items()}
        for info in [*self._inputs, *inferred.value_info, *inferred.output]:
            tensor = info.type.tensor_type
            self._types[info.name] = tensor.elem_type
            if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
                self._shapes[info.name] = tuple(dim.dim_value for dim in tensor.shape.dim)

    def finish(self, softmax: bool) -> Forward:
        """The result; nothing in it is shared with the model."""
        used = {name for node in self._nodes for name in node.input if name}
        unknown = [name for node in self._nodes for name in node.output if name and name not in self._shapes]
        if unknown:
            raise ModelError(
                f"the shape of {unknown[0]!r} depends on the data", hint="the training graph needs static shapes"
            )
        if not self._nodes or not self._inputs:
            raise ModelError("the model's first output does not depend on its inputs")
        weights = {
            name: np.array(self._values[name])
            for name in self._initializers
            if name in used and self._values[name].dtype == np.float32
        }
        constants = {name: value for name, value in self._values.items() if name in used and name not in weights}
        return Forward(self._nodes, self._inputs, weights, constants, self._shapes, self.logits, softmax, self._opset)

    def _fresh(self, stem: str) -> str:
        number, name = 0, stem
        while name in self._values:
            number += 1
            name = f"{stem}.{number}"
        return name


def _evaluated(node: onnx.NodeProto, feeds: dict[str, Any]) -> NDArray[Any]:
    results: Any = ReferenceEvaluator(node).run(None, feeds)
    return np.asarray(results[0])
