"""The one local loop: epochs over a participant's own samples, on the training graph of a bundle.

Devices, `edgert fit` and tests use this and nothing else. The order of the samples depends on the seeds only.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgert.backends.base import Metrics, TrainingSession
from edgert.errors import CheckError, SamplesError
from edgert.federated.plan import LocalTraining
from edgert.manifest import Training
from edgert.samples import Samples
from edgert.values import Feeds, TensorSpec, Weights, show_shape

__all__ = ["Trained", "train"]


@dataclass(frozen=True, slots=True)
class Trained:
    """What a participant has after its epochs.

    Args:
        weights: by initializer name.
        losses: mean loss per epoch, each sample seen before the step it takes part in.
        accuracy: fraction of right answers during the last epoch.
        examples: how many samples it learned from.
    """

    weights: Weights
    losses: tuple[float, ...]
    accuracy: float
    examples: int


def train(
    session: TrainingSession,
    training: Training,
    samples: Samples,
    inputs: Sequence[TensorSpec],
    start: Weights,
    local: LocalTraining,
    *,
    seed: tuple[int, ...] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train from `start` on `samples`; the last batch of an epoch is padded with rows of weight 0.

    Args:
        session: of the training graph; its parameters and state are set anew.
        inputs: of the inference graph; the first axis is the batch.
        seed: joins `local.seed`: device and round.
        progress: called with (steps done, steps in all) after each step.

    Raises:
        SamplesError: no labels, labels outside of the classes, or inputs of another shape.
        CheckError: the loss stopped being a number.
        BackendError: the runtime failed.
    """
    rows, labels = _rows(training, samples, inputs), _labels(training, samples)
    random = np.random.default_rng([local.seed, *seed])
    scalars = dict(zip(training.scalars, (local.learning_rate, local.momentum), strict=True))
    steps = math.ceil(len(labels) / training.batch_size)
    session.restore(start)
    losses: list[float] = []
    right = 0.0
    for epoch in range(local.epochs):
        loss = right = 0.0
        order = random.permutation(len(labels))
        for number, (batch, used) in enumerate(_batches(training, rows, labels, order)):
            metrics = _checked(session.step(batch, scalars), epoch)
            loss += metrics.loss * used
            right += metrics.correct
            if progress is not None:
                progress(epoch * steps + number + 1, local.epochs * steps)
        losses.append(loss / len(labels))
    weights = session.export()
    if not all(np.isfinite(value).all() for value in weights.values()):
        raise _diverged(local.epochs - 1)
    return Trained(weights, tuple(losses), right / len(labels), len(labels))


def _checked(metrics: Metrics, epoch: int) -> Metrics:
    if not math.isfinite(metrics.loss):
        raise _diverged(epoch)
    return metrics


def _diverged(epoch: int) -> CheckError:
    return CheckError(
        f"training diverged in epoch {epoch + 1}: the loss is no number any more",
        hint="lower the learning rate, or look for samples that are not finite",
    )


def _batches(
    training: Training, rows: Feeds, labels: NDArray[np.int64], order: NDArray[np.intp]
) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
    size = training.batch_size
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        used = len(chosen)
        weight = np.zeros(size, np.float32)
        weight[:used] = 1
        batch = {name: _filled(array[chosen], size) for name, array in rows.items()}
        yield {**batch, training.labels: _filled(labels[chosen], size), training.sample_weight: weight}, used


def _filled(rows: NDArray[Any], size: int) -> NDArray[Any]:
    if len(rows) == size:
        return rows
    full = np.zeros((size, *rows.shape[1:]), rows.dtype)
    full[: len(rows)] = rows
    return full


def _rows(training: Training, samples: Samples, inputs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """The samples as [samples, ...] in the types of the model."""
    specs = {spec.name: spec for spec in inputs}
    return {name: _fitted(samples, specs.get(name) or TensorSpec(name, "float32", ())) for name in training.inputs}


def _fitted(samples: Samples, spec: TensorSpec) -> NDArray[Any]:
    if spec.name not in samples.inputs:
        raise SamplesError(
            f"the samples hold no array {spec.name!r} (they hold {sorted(samples.inputs)})",
            hint="name each array in the .npz file as the model's input",
        )
    array = samples.inputs[spec.name]
    whole = array.ndim == len(spec.shape) + 1 and array.shape[1] == 1
    row = array.reshape(len(array), *array.shape[2:]) if whole else array
    if not TensorSpec(spec.name, spec.dtype, (None, *spec.shape[1:])[: len(spec.shape)]).fits(row.shape):
        raise SamplesError(
            f"samples {spec.name!r} have shape {array.shape}, the model's input is {show_shape(spec.shape)}",
            hint="first axis = samples, each row one example",
        )
    return row.astype(np.dtype(spec.dtype), copy=False)


def _labels(training: Training, samples: Samples) -> NDArray[np.int64]:
    labels = samples.labels
    if labels is None or not len(labels):
        raise SamplesError("the samples have no labels to learn from", hint="add an array 'labels' [samples]")
    if labels.shape != (len(samples),) or labels.dtype.kind not in "iu":
        raise SamplesError(
            f"labels must be whole numbers [samples], not {labels.dtype} {list(labels.shape)}",
            hint="give the number of the right class for each sample",
        )
    if labels.min() < 0 or (training.classes is not None and labels.max() >= training.classes):
        raise SamplesError(
            f"labels go from {labels.min()} to {labels.max()}, the model has {training.classes or 'other'} classes",
            hint="a label is the place of the right answer among the scores, from 0",
        )
    return labels.astype(np.int64)
