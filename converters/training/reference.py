"""The loss of an inference graph in float64, as a function of its parameters: what a training graph is measured by.

Shares no code with the autodiff. `onnx.reference` evaluates the graph; convolution and pooling are done here in
numpy, because the ones there loop in Python.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

__all__ = ["Reference"]

_Float64 = NDArray[np.float64]


class Reference:
    """Scores and loss of a model on a few rows.

    Args:
        model: the inference graph.
        parameters: initializers that become arguments.
        feeds: data inputs; first axis = rows.
        labels: int64 [rows].
        weight: of each row.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        parameters: Sequence[str],
        feeds: Mapping[str, NDArray[Any]],
        labels: NDArray[np.int64],
        weight: NDArray[Any],
    ) -> None:
        self._labels = labels
        self._weight = weight.astype(np.float64)
        wide = _in_float64(model, set(parameters))
        self._evaluator = ReferenceEvaluator(wide, new_ops=[Conv, MaxPool, AveragePool])
        self._output = wide.graph.output[0].name
        declared = [info.type.tensor_type.shape.dim[0] for info in model.graph.input if info.name in feeds]
        self._chunks = list(_chunks(feeds, len(labels), max(dim.dim_value for dim in declared)))

    def scores(self, point: Mapping[str, NDArray[Any]]) -> _Float64:
        """float64 [rows, classes]."""
        wide = {name: value.astype(np.float64) for name, value in point.items()}
        results: list[Any] = [self._evaluator.run([self._output], {**chunk, **wide}) for chunk in self._chunks]
        parts = [np.asarray(outputs[0]) for outputs in results]
        return np.concatenate([part.reshape(len(part), -1) for part in parts])[: len(self._labels)]

    def loss(self, scores: _Float64) -> float:
        """Cross-entropy of softmax(scores), averaged with the weights of the rows."""
        shifted = scores - scores.max(axis=1, keepdims=True)
        log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        picked = log_probability[np.arange(len(scores)), self._labels]
        return float(-(picked * self._weight).sum() / self._weight.sum())

    def correct(self, scores: _Float64) -> float:
        """Weighted number of right answers."""
        return float(self._weight[scores.argmax(axis=1) == self._labels].sum())

    def slope(self, point: Mapping[str, NDArray[Any]], name: str, line: _Float64, step: float) -> float:
        """The derivative of the loss along `line`, a direction of the parameter `name`, by central differences."""
        ahead, behind = (
            self.loss(self.scores({**point, name: point[name].astype(np.float64) + sign * step * line}))
            for sign in (1, -1)
        )
        return (ahead - behind) / (2 * step)


def _chunks(feeds: Mapping[str, NDArray[Any]], rows: int, fixed: int) -> Iterator[dict[str, NDArray[Any]]]:
    """The rows in batches of the size that the model wants (0 = any), the last one padded."""
    size = fixed or rows
    for first in range(0, rows, size):
        chunk = {}
        for name, array in feeds.items():
            part = array[first : first + size]
            full = np.zeros((size, *part.shape[1:]), np.float64 if part.dtype.kind == "f" else part.dtype)
            full[: len(part)] = part
            chunk[name] = full
        yield chunk


def _in_float64(model: onnx.ModelProto, parameters: set[str]) -> onnx.ModelProto:
    """A copy that computes in float64, with `parameters` as inputs and without a final softmax."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    kept = [_widened(tensor) for tensor in graph.initializer if tensor.name not in parameters]
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer if tensor.name in parameters}
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.CopyFrom(_widened(attribute.t))
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    output = helper.make_tensor_value_info(_before_softmax(graph), TensorProto.DOUBLE, None)
    inputs = [info for info in graph.input if info.name not in shapes]
    inputs += [helper.make_tensor_value_info(name, TensorProto.DOUBLE, shape) for name, shape in shapes.items()]
    for info in inputs:
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    del graph.input[:], graph.output[:]
    graph.input.extend(inputs)
    graph.output.append(output)
    return copy


def _before_softmax(graph: onnx.GraphProto) -> str:
    name: str = graph.output[0].name
    makers = {output: node for node in graph.node for output in node.output}
    while name in makers and makers[name].op_type in ("Identity", "Dropout"):
        name = makers[name].input[0]
    if name in makers and makers[name].op_type in ("Softmax", "LogSoftmax"):
        name = makers[name].input[0]
    return name


def _widened(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type != TensorProto.FLOAT:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)


# Operators: the class name is the operator's, the arguments of `_run` are its inputs and attributes.


class Conv(OpRun):
    """Convolution with any number of spatial axes."""

    def _run(
        self,
        x: _Float64,
        kernel: _Float64,
        bias: _Float64 | None = None,
        auto_pad: str = "NOTSET",
        dilations: Sequence[int] | None = None,
        group: int = 1,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[_Float64]:
        windows = _windows(
            x, kernel.shape[2:], strides, dilations, _pads(x, kernel.shape[2:], auto_pad, pads, strides, dilations), 0.0
        )
        batch, channels, *rest = windows.shape
        rank = len(kernel.shape) - 2
        places = int(np.prod(rest[:rank]))
        columns = windows.reshape(batch, group, channels // group, places, -1)
        columns = columns.transpose(1, 0, 3, 2, 4).reshape(group, batch * places, -1)
        filters = kernel.reshape(group, len(kernel) // group, -1)
        result = np.matmul(columns, filters.transpose(0, 2, 1)).reshape(group, batch, places, -1)
        result = result.transpose(1, 0, 3, 2).reshape(batch, len(kernel), *rest[:rank])
        return (result if bias is None else result + bias.reshape(-1, *[1] * rank),)


class MaxPool(OpRun):
    """Largest value of each window."""

    def _run(
        self,
        x: _Float64,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] = (),
        pads: Sequence[int] | None = None,
        storage_order: int = 0,
        strides: Sequence[int] | None = None,
    ) -> tuple[_Float64]:
        around = _pads(x, kernel_shape, auto_pad, pads, strides, dilations, bool(ceil_mode))
        windows = _windows(x, kernel_shape, strides, dilations, around, -np.inf)
        return (windows.max(axis=tuple(range(-len(kernel_shape), 0))),)


class AveragePool(OpRun):
    """Mean of each window."""

    def _run(
        self,
        x: _Float64,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        count_include_pad: int = 0,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] = (),
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[_Float64]:
        axes = tuple(range(-len(kernel_shape), 0))
        around = _pads(x, kernel_shape, auto_pad, pads, strides, dilations, bool(ceil_mode))
        counted = np.ones((1, 1, *x.shape[2:]))
        if count_include_pad:
            declared = _pads(x, kernel_shape, auto_pad, pads, strides, dilations)
            counted = np.pad(counted, [(0, 0), (0, 0), *declared], constant_values=1.0)
            beyond = [(0, a[1] - d[1]) for a, d in zip(around, declared, strict=True)]
            counts = _windows(counted, kernel_shape, strides, dilations, beyond, 0.0).sum(axis=axes)
        else:
            counts = _windows(counted, kernel_shape, strides, dilations, around, 0.0).sum(axis=axes)
        return (_windows(x, kernel_shape, strides, dilations, around, 0.0).sum(axis=axes) / counts,)


_Pads = list[tuple[int, int]]


def _pads(
    x: _Float64,
    kernel: Sequence[int],
    auto_pad: str,
    pads: Sequence[int] | None,
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    ceil: bool = False,
) -> _Pads:
    rank = len(kernel)
    around = []
    for axis in range(rank):
        stride, dilation = (strides or [1] * rank)[axis], (dilations or [1] * rank)[axis]
        reach, size = dilation * (kernel[axis] - 1) + 1, x.shape[2 + axis]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            total = max(0, (-(-size // stride) - 1) * stride + reach - size)
            small, large = total // 2, total - total // 2
            around.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
            continue
        begin, end = (pads[axis], pads[axis + rank]) if pads else (0, 0)
        if ceil:
            windows = -(-(size + begin + end - reach) // stride) + 1
            if (windows - 1) * stride >= size + begin:
                windows -= 1  # a window that starts in the padding behind the input is left out
            end = max(end, (windows - 1) * stride + reach - size - begin)
        around.append((begin, end))
    return around


def _windows(
    x: _Float64,
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    around: _Pads,
    fill: float,
) -> _Float64:
    """float64 [batch, channels, *places, *kernel]."""
    rank = len(kernel)
    stride, dilation = strides or [1] * rank, dilations or [1] * rank
    padded = np.pad(x, [(0, 0), (0, 0), *around], constant_values=fill)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    windows = sliding_window_view(padded, reach, axis=tuple(range(2, 2 + rank)))
    steps = (slice(None), slice(None), *(slice(None, None, s) for s in [*stride, *dilation]))
    return np.asarray(windows[steps])
