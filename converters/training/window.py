"""Where the kernel of a convolution or pooling goes."""

from dataclasses import dataclass
from typing import Any

import onnx

from converters.training.rules.base import Shape, attributes
from edgert.errors import ModelError

__all__ = ["Window"]


@dataclass(frozen=True, slots=True)
class Window:
    """Where the kernel goes: the attributes of a convolution or pooling with the automatic ones worked out.

    Args:
        size, stride, dilation: per spatial axis.
        begin: padding before the first value, per spatial axis.
        end: padding behind the last value that the result really reaches; negative where values are left over.
        source, result: spatial sizes of input and output.
    """

    size: Shape
    stride: Shape
    dilation: Shape
    begin: Shape
    end: Shape
    source: Shape
    result: Shape

    @classmethod
    def of(cls, node: onnx.NodeProto, size: Shape, source: Shape, result: Shape) -> "Window":
        """The window of a node."""
        attrs = attributes(node)
        ones = (1,) * len(size)
        stride, dilation = tuple(attrs.get("strides", ones)), tuple(attrs.get("dilations", ones))
        reach = [s * (o - 1) + d * (k - 1) + 1 for s, o, d, k in zip(stride, result, dilation, size, strict=True)]
        total = [max(0, r - n) for r, n in zip(reach, source, strict=True)]
        match attrs.get("auto_pad", "NOTSET"):
            case "SAME_UPPER":
                begin = tuple(pad // 2 for pad in total)
            case "SAME_LOWER":
                begin = tuple(pad - pad // 2 for pad in total)
            case "VALID":
                begin = (0,) * len(size)
            case "NOTSET" | "":
                begin = tuple(attrs.get("pads", (0,) * (2 * len(size))))[: len(size)]
            case other:
                raise ModelError(f"{node.op_type} with auto_pad={other!r} has no gradient rule")
        end = tuple(r - b - n for r, b, n in zip(reach, begin, source, strict=True))
        return cls(size, stride, dilation, begin, end, source, result)

    def transposed(self) -> dict[str, Any]:
        """The attributes of the `ConvTranspose` that leads from the result's shape back to the source's."""
        return {
            "strides": list(self.stride),
            "dilations": list(self.dilation),
            "pads": [*self.begin, *(max(0, pad) for pad in self.end)],
            "output_padding": [max(0, -pad) for pad in self.end],
        }
