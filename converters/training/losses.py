"""Losses: what a training graph makes smaller."""

from dataclasses import dataclass

import numpy as np

from converters.training.rules.base import Writer

__all__ = ["Loss", "softmax_cross_entropy"]


@dataclass(frozen=True, slots=True)
class Loss:
    """Names of what a loss emits.

    Args:
        value: float32 [].
        correct: weighted number of right answers, float32 [].
        grad: gradient with respect to the scores, float32 [batch, classes].
    """

    value: str
    correct: str
    grad: str


def softmax_cross_entropy(
    w: Writer, scores: str, classes: int, *, labels: str, sample_weight: str, names: tuple[str, str]
) -> Loss:
    """Mean cross-entropy of softmax(scores), weighted by row; rows with weight 0 count nowhere.

    With weights that are all zero the loss and its gradients are 0.

    Args:
        scores: float32 [batch, classes].
        labels: int64 [batch], 0 <= label < classes.
        sample_weight: float32 [batch], not negative.
        names: what to call the loss and the number of right answers.
    """
    value, correct = names
    log_probability = w.add("LogSoftmax", scores, axis=1)
    depth = w.constant(np.array(classes, np.int64))
    hot = w.add("OneHot", labels, depth, w.constant(np.array([0, 1], np.float32)), axis=1)
    total = w.add("Max", w.total(sample_weight, [0]), w.scalar(1e-12))
    share = w.add("Unsqueeze", w.add("Div", sample_weight, total), w.ints([1]))
    grad = w.add("Mul", w.add("Sub", w.add("Exp", log_probability), hot), share)
    picked = w.add("Mul", w.add("Mul", log_probability, hot), share)
    w.add("Neg", w.total(picked, [0, 1]), out=value)
    best = w.add("ArgMax", scores, axis=1, keepdims=0)
    right = w.add("Cast", w.add("Equal", best, labels), to=1)
    w.add("ReduceSum", w.add("Mul", right, sample_weight), w.ints([0]), keepdims=0, out=correct)
    return Loss(value, correct, grad)
