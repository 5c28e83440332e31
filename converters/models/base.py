"""A network of the model library, and the writer that networks are made with."""

from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["Layers", "Network"]

_OPSET = 18
_IR_VERSION = 10


class Network(Protocol):
    """The plug-in object: makes an untrained network."""

    summary: str
    """One line: input, layers, output."""

    def make(self, seed: int) -> onnx.ModelProto:
        """The network with weights drawn from `seed`; the same seed gives the same bytes."""
        ...


class Layers:
    """Writes a feed-forward network: each call adds one layer behind the last.

    Args:
        name: of the graph.
        image: name and shape of the float32 input without the batch axis, which stays free.
        seed: of the weights (He initialisation, biases 0).
    """

    def __init__(self, name: str, image: tuple[str, tuple[int, ...]], seed: int) -> None:
        self._name = name
        self._input, shape = image
        self._shape = shape
        self._last = self._input
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def conv(self, name: str, channels: int, filters: int, size: int) -> None:
        """A convolution that keeps height and width."""
        weight = self._drawn(f"{name}.weight", (filters, channels, size, size), channels * size * size)
        self._add(
            "Conv", name, weight, self._zeros(f"{name}.bias", filters),
            kernel_shape=[size, size], pads=[size // 2] * 4,
        )  # fmt: skip

    def dense(self, name: str, inputs: int, outputs: int) -> None:
        """A fully connected layer."""
        weight = self._drawn(f"{name}.weight", (inputs, outputs), inputs)
        self._add("Gemm", name, weight, self._zeros(f"{name}.bias", outputs))

    def apply(self, op_type: str, name: str, **attrs: Any) -> None:
        """An operator without weights."""
        self._add(op_type, name, **attrs)

    def finish(self, output: str, classes: int) -> onnx.ModelProto:
        """The model; the last layer's result is called `output` and has the shape [batch, classes]."""
        self._nodes[-1].output[0] = output
        graph = helper.make_graph(
            self._nodes,
            self._name,
            [helper.make_tensor_value_info(self._input, TensorProto.FLOAT, ["N", *self._shape])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", classes])],
            self._weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="edgert")
        model.ir_version = _IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return model

    def _add(self, op_type: str, name: str, *weights: str, **attrs: Any) -> None:
        self._nodes.append(helper.make_node(op_type, [self._last, *weights], [name], name=name, **attrs))
        self._last = name

    def _drawn(self, name: str, shape: tuple[int, ...], fan_in: int) -> str:
        return self._weight(name, self._random.normal(0, np.sqrt(2 / fan_in), shape))

    def _zeros(self, name: str, size: int) -> str:
        return self._weight(name, np.zeros(size))

    def _weight(self, name: str, values: NDArray[np.float64]) -> str:
        self._weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name
