"""What a gradient rule is, and the writer it emits nodes with.

A file of this folder is one family of operators; its ``plugin`` maps operator types to a `Rule`. A rule sees one node
of the forward graph and the name of the gradient of its output, emits standard ONNX nodes, and gives the gradient of
each input. Every shape is static and known.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from edgert.errors import ModelError

__all__ = ["Backward", "Family", "Rule", "Shape", "Writer", "attributes", "unbroadcast"]

Shape = tuple[int, ...]


class Writer:
    """Emits nodes with fresh names and shared constants, in an order that depends on nothing but the calls.

    Args:
        shapes: of every tensor of the forward graph.
        values: of the tensors of the forward graph that are constant.
        taken: names that must not be used again.
    """

    def __init__(
        self, shapes: Mapping[str, Shape], values: Mapping[str, NDArray[Any]], taken: Iterable[str] = ()
    ) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self._shapes = shapes
        self._values = values
        self._taken = set(taken)
        self._known: dict[tuple[str, Shape, bytes], str] = {}

    def shape(self, name: str) -> Shape:
        """The static shape of a tensor of the forward graph."""
        return self._shapes[name]

    def value(self, name: str) -> NDArray[Any] | None:
        """What a tensor of the forward graph holds when it is constant, else None."""
        return self._values.get(name)

    def fresh(self, stem: str) -> str:
        """A tensor name that nobody has."""
        number, name = 0, stem
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        return name

    def add(self, op_type: str, *inputs: str, out: str = "", **attrs: Any) -> str:
        """Emit a node with one output; returns the output's name.

        Args:
            inputs: tensor names; an empty name leaves an optional input out.
            out: the output's name, already reserved by the caller; a fresh one when empty.
        """
        name = out or self.fresh(f"train/{op_type}")
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], **attrs))
        return name

    def add_many(self, op_type: str, *inputs: str, count: int, **attrs: Any) -> list[str]:
        """Emit a node with `count` outputs; returns their names."""
        names = [self.fresh(f"train/{op_type}") for _ in range(count)]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, **attrs))
        return names

    def constant(self, array: NDArray[Any]) -> str:
        """The name of a constant; equal constants share one."""
        array = np.ascontiguousarray(array) if array.ndim else array
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self.fresh("train/constant")
            self.constants[self._known[key]] = array
        return self._known[key]

    def ints(self, values: Sequence[int]) -> str:
        """A constant vector of int64: axes, shapes, slice bounds."""
        return self.constant(np.array(values, dtype=np.int64))

    def scalar(self, value: float) -> str:
        """A constant float32 without axes."""
        return self.constant(np.array(value, dtype=np.float32))

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        """The tensor in another shape."""
        return self.add("Reshape", name, self.ints(shape))

    def transpose(self, name: str, perm: Sequence[int]) -> str:
        """The tensor with its axes in another order."""
        return self.add("Transpose", name, perm=list(perm))

    def total(self, name: str, axes: Sequence[int], *, keepdims: bool = False) -> str:
        """The sum over `axes`."""
        return self.add("ReduceSum", name, self.ints(axes), keepdims=int(keepdims))


Backward = Callable[[Writer, onnx.NodeProto, str], Sequence[str | None]]
"""Emits the gradients of a node's inputs, given the name of its (first) output's gradient; None = no gradient."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How one operator is differentiated.

    Args:
        backward: emits the gradients.
        inputs: positions that have a gradient; None = every input. The other inputs are never trained.
        arithmetic: an initializer operand may be a plain number of the formula. It counts as a parameter only
            when it has more than one element and meets a value that already depends on a parameter, so the constants
            of a hard-swish or of the normalisation of the input stay what they are.
    """

    backward: Backward
    inputs: tuple[int, ...] | None = (0,)
    arithmetic: bool = False

    def differentiable(self, node: onnx.NodeProto) -> list[str]:
        """The names of the inputs that have a gradient."""
        return [name for i, name in enumerate(node.input) if name and (self.inputs is None or i in self.inputs)]


@dataclass(frozen=True, slots=True)
class Family:
    """The plug-in object of one file of this folder: rules by operator type."""

    rules: Mapping[str, Rule] = field(default_factory=dict)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node, texts as `str`."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def unbroadcast(w: Writer, grad: str, grad_shape: Shape, shape: Shape) -> str:
    """The gradient of an operand that was broadcast: summed over the axes along which it was repeated.

    Args:
        grad: gradient of the result, of shape `grad_shape`.
        shape: of the operand.
    """
    if grad_shape == shape:
        return grad
    lead = len(grad_shape) - len(shape)
    if lead < 0:
        raise ModelError(f"a value of shape {grad_shape} cannot come from an operand of shape {shape}")
    axes = [i for i, size in enumerate(grad_shape) if i < lead or (shape[i - lead] == 1 and size != 1)]
    summed = w.total(grad, axes, keepdims=True) if axes else grad
    return w.reshape(summed, shape) if lead else summed
