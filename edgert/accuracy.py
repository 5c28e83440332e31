"""How good answers are: one definition for conversion, `edgert infer`, the gates and the demo."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgert.errors import SamplesError

__all__ = ["INCOMPARABLE", "cosine", "difference", "top1"]

INCOMPARABLE = sys.float_info.max
"""The difference where one answer is not a number or not finite and the other is; JSON can hold it."""


def top1(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """The fraction of samples whose highest score is at their label.

    Args:
        scores: [samples, ..., classes]; axes of size 1 between are ignored.
        labels: int [samples].

    Raises:
        SamplesError: the shapes do not fit together.
    """
    flat = scores.reshape(len(scores), -1) if len(scores) else scores
    if flat.ndim != 2 or labels.shape != (len(flat),) or not len(flat):
        raise SamplesError(
            f"scores {scores.shape} and labels {labels.shape} do not fit together",
            hint="one class number per sample, and one score per class",
        )
    return float(np.mean(np.argmax(flat, axis=1) == labels))


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Mean cosine similarity of two sets of outputs [samples, ...]: the measure when there are no labels."""
    x = a.reshape(len(a), -1).astype(np.float64)
    y = b.reshape(len(b), -1).astype(np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    same = np.all(x == y, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        similarity = np.where((norms > 0) & np.isfinite(norms), np.sum(x * y, axis=1) / norms, same.astype(np.float64))
    return float(np.mean(similarity))


def difference(answer: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Largest absolute difference of two arrays of one shape; `INCOMPARABLE` where one is not finite and the other is.

    Equal infinities and a NaN on both sides do not differ. Arrays that hold no numbers differ by 0 or `INCOMPARABLE`.
    """
    if answer.dtype.kind not in "biuf" or wanted.dtype.kind not in "biuf":
        return 0.0 if np.array_equal(answer, wanted) else INCOMPARABLE
    a, b = answer.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        gaps = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return float(np.nan_to_num(gaps, nan=INCOMPARABLE, posinf=INCOMPARABLE).max(initial=0.0))
