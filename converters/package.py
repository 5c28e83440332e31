"""From a chosen artifact to a bundle: golden vectors with their tolerance, graph summary, manifest."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from converters import graph, measure, report
from converters.evaluate import Answers
from converters.quantize.base import FLOAT32, Precision
from converters.training.build import TrainingGraph
from converters.work import Draft, Work
from edgert import golden as golden_file
from edgert.accuracy import INCOMPARABLE, difference
from edgert.errors import CheckError
from edgert.manifest import Artifact, Golden, Manifest, Provenance, Role, Tensor
from edgert.samples import Samples, pack_arrays
from edgert.values import canonical_json, digest

__all__ = ["Contents", "contents", "golden_vectors", "tolerance"]

GOLDEN = 4
"""Number of golden vectors."""

_FLOAT_RELATIVE = 1e-3
_INTEGER_RELATIVE = 1e-2
_STEPS = 4
_SMALLEST = 1e-6


@dataclass(frozen=True, slots=True)
class Contents:
    """A manifest, and the bytes of every artifact by digest."""

    manifest: Manifest
    artifacts: dict[str, bytes]


def contents(
    work: Work, draft: Draft, training: TrainingGraph | None, *, min_runtime: dict[str, str], weights: str | None
) -> Contents:
    """Everything that goes into the bundle of one chosen draft.

    Args:
        min_runtime: of the chosen artifact, by backend name.
        weights: digest of the file of weights that was put in, or None.

    Raises:
        CheckError: the chosen artifact cannot compute the golden vectors.
    """
    golden, vectors = golden_vectors(work, draft)
    parts: list[tuple[Role, str, bytes]] = [("infer", "model.onnx", draft.data)]
    if training is not None:
        parts.append(("train", "train.onnx", graph.serialize(training.model)))
        parts.append(("weights", "weights.npz", pack_arrays(training.weights)))
    parts.append(("golden", "golden.npz", vectors))
    parts.append(("index", "index.json", _index(work.cleaned)))
    artifacts = tuple(
        Artifact(
            role=role,
            format=file.rpartition(".")[2],
            file=file,
            digest=digest(data),
            size_bytes=len(data),
            precision=draft.precision.name if role == "infer" else "",
            min_runtime=min_runtime if role == "infer" else {},
        )
        for role, file, data in parts
    )
    manifest = Manifest(
        model=work.recipe.model,
        profile=work.recipe.profile,
        inputs=tuple(Tensor.of(spec) for spec in work.inputs),
        outputs=tuple(Tensor.of(spec) for spec in work.outputs),
        artifacts=artifacts,
        golden=golden,
        training=None if training is None else training.training,
        provenance=Provenance(
            source=digest(graph.serialize(work.imported)),
            recipe=work.recipe.digest(),
            weights=weights,
            tools=report.versions(),
        ),
    )
    return Contents(manifest, {digest(data): data for _, _, data in parts})


def golden_vectors(work: Work, draft: Draft) -> tuple[Golden, bytes]:
    """Inputs from the probe, and what the chosen artifact answers to them in a child process on this machine.

    Raises:
        CheckError: it does not answer.
    """
    inputs = work.probe.take(slice(0, GOLDEN))
    plain = {name: values[:GOLDEN] for name, values in work.reference.items()}
    said = plain if draft.precision.name == FLOAT32.name else _answers(draft, inputs, work.folder)
    allowed = {name: tolerance(name, draft.precision, said[name], plain[name]) for name in said}
    return Golden(count=len(inputs), tolerance=allowed), golden_file.pack(inputs.inputs, said)


def _answers(draft: Draft, inputs: Samples, folder: Path) -> Answers:
    verdict, said = measure.answers({"golden": draft.data}, inputs, folder)["golden"]
    if said is None:
        raise CheckError(f"the golden vectors failed at stage {verdict.stage!r}: {verdict.reason}")
    return said


def tolerance(name: str, precision: Precision, said: NDArray[Any], plain: NDArray[Any]) -> float:
    """Largest difference to a golden output that another CPU's kernels may show.

    Float kernels only sum in another order: a thousandth of the largest value. Integer kernels may differ by a step
    in each layer: then an answer may be off by a hundredth of the largest value, by four steps of the output, or by as
    much as quantization itself has moved the golden answers, whichever is most.

    Args:
        said, plain: what the chosen artifact and the float one answer.

    Raises:
        CheckError: one answers numbers where the other does not, so no tolerance can be told.
    """
    values = said.astype(np.float64)
    values = np.abs(values[np.isfinite(values)])
    largest = float(values.max()) if values.size else 0.0
    allowed = _FLOAT_RELATIVE * largest
    if precision.weights is not None:
        moved = difference(said, plain)
        if moved == INCOMPARABLE:
            raise CheckError(
                f"output {name!r} of the quantized model is not finite where the float one is",
                hint="give better calibration samples, or ask for --precision float32",
            )
        allowed = max(_INTEGER_RELATIVE * largest, moved)
        if name in precision.activations:
            allowed = max(allowed, _STEPS * precision.activations[name].scale)
    return float(f"{max(allowed, _SMALLEST):.4g}")


def _index(model: onnx.ModelProto) -> bytes:
    summary = {
        "format": 1,
        "operators": graph.operators(model),
        "parameters": graph.parameters(model),
        "macs": graph.macs(model),
    }
    return canonical_json(summary)
