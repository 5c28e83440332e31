"""Gradients of convolutions with one or more spatial axes: groups, strides, pads, dilations.

The gradient of the weights is an im2col and one matrix product (group 1), or a convolution with batch and channels
swapped (groups, depthwise). The gradient of the input is a convolution with the flipped kernel where that is possible,
else a transposed convolution.
"""

from collections.abc import Sequence
from itertools import product
from math import prod

import onnx

from converters.training.rules.base import Family, Rule, Writer, attributes
from converters.training.window import Window

__all__ = ["plugin"]


def _conv(w: Writer, node: onnx.NodeProto, grad: str) -> Sequence[str | None]:
    x, kernel = node.input[:2]
    window = Window.of(node, w.shape(kernel)[2:], w.shape(x)[2:], w.shape(node.output[0])[2:])
    group = int(attributes(node).get("group", 1))
    to_kernel = _kernel_by_columns if group == 1 else _kernel_by_swapped_conv
    grads: list[str | None] = [
        _to_input(w, window, kernel, grad, group),
        to_kernel(w, window, node, grad, group),
    ]
    if len(node.input) > 2 and node.input[2]:
        grads.append(w.total(grad, [0, *range(2, 2 + len(window.size))]))
    return grads


def _to_input(w: Writer, window: Window, kernel: str, grad: str, group: int) -> str:
    axes = range(len(window.size))
    begin = [k - 1 - b for k, b in zip(window.size, window.begin, strict=True)]
    end = [k - 1 - e for k, e in zip(window.size, window.end, strict=True)]
    plain = group == 1 and set(window.stride) == {1} and set(window.dilation) == {1}
    if not plain or min(begin) < 0 or min(end) < 0:
        return w.add("ConvTranspose", grad, kernel, group=group, **window.transposed())
    flipped = w.transpose(kernel, [1, 0, *(2 + axis for axis in axes)])
    if max(window.size) > 1:
        last, stop, step = ([value] * len(window.size) for value in (-1, -(2**31), -1))
        flipped = w.add("Slice", flipped, w.ints(last), w.ints(stop), w.ints([2 + a for a in axes]), w.ints(step))
    return w.add("Conv", grad, flipped, pads=[*begin, *end])


def _padded(w: Writer, window: Window, x: str) -> str:
    pads = [0, 0, *window.begin, 0, 0, *(max(0, pad) for pad in window.end)]
    return w.add("Pad", x, w.ints(pads)) if any(pads) else x


def _kernel_by_columns(w: Writer, window: Window, node: onnx.NodeProto, grad: str, group: int) -> str:
    x, kernel = node.input[:2]
    batch, channels = w.shape(x)[:2]
    filters = w.shape(kernel)[0]
    padded = _padded(w, window, x)
    axes = w.ints([2 + axis for axis in range(len(window.size))])
    taps = []
    for tap in product(*(range(k) for k in window.size)):
        start = [t * d for t, d in zip(tap, window.dilation, strict=True)]
        stop = [a + s * (o - 1) + 1 for a, s, o in zip(start, window.stride, window.result, strict=True)]
        whole = len(window.size) * [1] == list(window.size) and set(window.stride) == {1}
        if whole and list(window.result) == list(window.source):
            taps.append(padded)
        else:
            taps.append(w.add("Slice", padded, w.ints(start), w.ints(stop), axes, w.ints(window.stride)))
    columns = taps[0] if len(taps) == 1 else w.add("Concat", *taps, axis=1)
    places = prod(window.result)
    columns = w.reshape(columns, [batch, len(taps) * channels, places])
    flat = w.reshape(grad, [batch, filters, places])
    product_ = w.add("MatMul", flat, w.transpose(columns, [0, 2, 1]))
    summed = w.total(product_, [0])
    if len(taps) == 1:
        return w.reshape(summed, w.shape(kernel))
    return w.reshape(w.transpose(w.reshape(summed, [filters, len(taps), channels]), [0, 2, 1]), w.shape(kernel))


def _kernel_by_swapped_conv(w: Writer, window: Window, node: onnx.NodeProto, grad: str, group: int) -> str:
    x, kernel = node.input[:2]
    batch, channels = w.shape(x)[:2]
    filters, per_group = w.shape(kernel)[:2]
    rank = len(window.size)
    rest = list(range(rank))
    apart = w.reshape(x, [batch, group, channels // group, *window.source])
    swapped = w.transpose(apart, [2, 1, 0, *(3 + axis for axis in rest)])
    image = w.reshape(swapped, [per_group, group * batch, *window.source])
    filters_as_kernel = w.transpose(grad, [1, 0, *(2 + axis for axis in rest)])
    # Values that the forward windows never reach would add surplus taps at the end: cut off below.
    result = w.add(
        "Conv",
        image,
        filters_as_kernel,
        group=group,
        strides=list(window.dilation),
        dilations=list(window.stride),
        pads=[*window.begin, *(max(0, pad) for pad in window.end)],
    )
    if min(window.end) < 0:
        axes = w.ints([2 + axis for axis in rest])
        result = w.add("Slice", result, w.ints([0] * rank), w.ints(window.size), axes)
    return w.reshape(w.transpose(result, [1, 0, *(2 + axis for axis in rest)]), [filters, per_group, *window.size])


plugin = Family({"Conv": Rule(_conv, inputs=None)})
