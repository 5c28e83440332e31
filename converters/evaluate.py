"""How good a candidate's answers are: against labels where there are some, against the float answers otherwise."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.report import Metric
from edgert import accuracy
from edgert.errors import SamplesError

__all__ = ["Answers", "check_labels", "differences", "drop_points", "same", "score"]

Answers = Mapping[str, NDArray[Any]]
"""One array per output, first axis = samples."""

_PARITY = 1e-3


def score(metric: Metric, answers: Answers, reference: Answers, labels: NDArray[Any] | None, first: str) -> float:
    """Accuracy of `answers`: top-1 of output `first`, or the lowest cosine similarity of any output.

    Args:
        answers, reference: one array per output, first axis = samples; the reference is what float32 said.
    """
    if metric == "top1" and labels is not None:
        return accuracy.top1(answers[first], labels)
    return min(accuracy.cosine(answers[name], reference[name]) for name in reference)


def drop_points(accuracy_float: float, accuracy_quantized: float) -> float:
    """What is lost, in points (hundredths); negative when the quantized model happens to be better."""
    return round((accuracy_float - accuracy_quantized) * 100, 6)


def check_labels(answers: Answers, labels: NDArray[Any], first: str) -> None:
    """Refuse labels that cannot be those of this model.

    Raises:
        SamplesError: they are no class numbers, or the first output holds no score per class.
    """
    scores = answers[first].reshape(len(answers[first]), -1)
    hint = "leave `labels` out: then answers are compared with the float model's"
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise SamplesError(f"labels must be class numbers [samples], not {labels.dtype} {labels.shape}", hint=hint)
    if scores.shape[1] < 2:
        raise SamplesError(f"there are labels, but output {first!r} holds a single value per sample", hint=hint)
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise SamplesError(
            f"labels go from {labels.min()} to {labels.max()}, output {first!r} has {scores.shape[1]} scores", hint=hint
        )


def differences(answers: Answers, reference: Answers) -> dict[str, float]:
    """`edgert.accuracy.difference` by output."""
    return {name: accuracy.difference(answers[name], want) for name, want in reference.items()}


def same(answers: Answers, reference: Answers) -> bool:
    """Whether two float graphs compute the same: within a thousandth of the largest value of each output."""
    if answers.keys() != reference.keys():
        return False
    for name, want in reference.items():
        have = answers[name]
        finite = np.isfinite(want) if want.dtype.kind == "f" else np.ones(want.shape, bool)
        if have.shape != want.shape or have.dtype != want.dtype:
            return False
        if want.dtype.kind == "f" and not np.array_equal(np.isfinite(have), finite):
            return False
    return all(gap <= _PARITY * _scale(reference[name]) for name, gap in differences(answers, reference).items())


def _scale(values: NDArray[Any]) -> float:
    finite = np.abs(values.astype(np.float64))
    finite = finite[np.isfinite(finite)]
    return max(float(finite.max()) if finite.size else 0.0, 1e-3)
