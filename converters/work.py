"""The value that flows through the stages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from converters.quantize.base import FLOAT32, Precision
from converters.recipe import Recipe
from converters.report import SampleKind
from edgert.profiles import Profile
from edgert.samples import Samples
from edgert.values import TensorSpec

__all__ = ["Draft", "Work"]


@dataclass(frozen=True, slots=True)
class Draft:
    """An artifact that may go into the bundle.

    Args:
        precision: what it was emitted with.
        data: its bytes; empty when it could not be made.
        failure: why it could not be made.
    """

    precision: Precision
    data: bytes = b""
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """A graph on its way to a bundle; each stage gives a fuller one.

    Args:
        recipe, profile: what is wanted, and for which kind of box.
        folder: scratch space, gone when the work is done.
        imported: the float graph in canonical form; what the source keeps.
        cleaned: the same computation, slimmer; what artifacts are made from.
        inputs, outputs: of the graph.
        calibrate, evaluate: samples in whole form, or None.
        probe: what parity and golden vectors are computed on.
        probe_kind: where `probe` comes from.
        reference: the answers of the float artifact to `probe`, by output.
        drafts: candidate artifacts, float32 first.
        files: the samples as the source keeps them, ``.npz``, by name.
        notes: what could not be done, for the report.
    """

    recipe: Recipe
    profile: Profile
    folder: Path
    imported: onnx.ModelProto
    cleaned: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    probe: Samples
    probe_kind: SampleKind
    calibrate: Samples | None = None
    evaluate: Samples | None = None
    reference: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    drafts: tuple[Draft, ...] = (Draft(FLOAT32),)
    files: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
