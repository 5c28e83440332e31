"""What a quantization scheme must give: which tensors it wants observed, and the precision it decides on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import onnx
from pydantic import BaseModel

from edgert.profiles import Profile

__all__ = ["FLOAT32", "Precision", "Quantization", "Range", "Ranges", "Scheme", "WeightRule"]


class Range(NamedTuple):
    """Smallest and largest value a tensor took on the calibration samples."""

    low: float
    high: float


Ranges = Mapping[str, Range]
"""Observed ranges by tensor name."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How one tensor is stored: ``value = scale * (stored - zero_point)``."""

    dtype: Literal["uint8"]
    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True)
class WeightRule:
    """How constant weights are stored: symmetric int8, the scale following from the largest weight.

    Args:
        bits: 8, or 7 where 8-bit kernels saturate.
        per_channel: one scale per output channel instead of one per tensor.
    """

    bits: Literal[7, 8]
    per_channel: bool = True


@dataclass(frozen=True, slots=True)
class Precision:
    """What a scheme decides; an emitter turns graph and precision into bytes.

    Args:
        name: ``float32``, ``int8``.
        activations: how each activation is stored, by tensor name; those not named stay float.
        weights: how the constant weights of `nodes` are stored; None = float.
        nodes: names of the nodes that compute on stored integers.
    """

    name: str
    activations: Mapping[str, Quantization] = field(default_factory=dict)
    weights: WeightRule | None = None
    nodes: tuple[str, ...] = ()


FLOAT32 = Precision("float32")
"""Nothing is quantized."""


class Scheme(Protocol):
    """A way to quantize; decides, and writes nothing."""

    precision: str
    observer: str
    Options: type[BaseModel]

    def options_for(self, profile: Profile) -> BaseModel:
        """The options that suit a kind of box."""
        ...

    def observed(self, model: onnx.ModelProto) -> tuple[str, ...]:
        """The float tensors whose ranges it needs; empty when there is nothing to quantize."""
        ...

    def plan(self, model: onnx.ModelProto, ranges: Ranges, options: Any) -> Precision:
        """The precision of every tensor.

        Raises:
            CheckError: this scheme can do nothing for this graph.
        """
        ...
