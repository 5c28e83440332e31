"""Training on this machine: the graph in a temporary file, the loop of the devices, the weights put back."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from converters import graph
from converters.training.artifact import TrainingGraph, with_weights
from converters.training.build import build
from edgert.accuracy import top1
from edgert.backends.onnxruntime import plugin as runtime
from edgert.errors import SamplesError
from edgert.federated.plan import LocalTraining
from edgert.federated.training import Trained, train
from edgert.samples import Samples

__all__ = ["Fitted", "fit"]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained model.

    Args:
        model: the model that was given, with other weights.
        trained: what the loop saw.
        accuracy_evaluate: top-1 of `model` on the evaluation samples, or None.
    """

    model: onnx.ModelProto
    trained: Trained
    accuracy_evaluate: float | None


def fit(
    model: onnx.ModelProto,
    samples: Samples,
    local: LocalTraining,
    *,
    batch_size: int,
    evaluate: Samples | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Fitted:
    """Train `model` on labelled samples.

    Raises:
        ModelError: it cannot be trained.
        SamplesError: the samples do not fit, or have no labels.
        CheckError: training diverged.
    """
    labels = None if evaluate is None else _labels(evaluate)
    made = build(model, batch_size=batch_size)
    with tempfile.TemporaryDirectory(prefix="edgert-fit-") as folder:
        trained = _trained(made, samples, local, Path(folder), progress)
        fitted = with_weights(model, trained.weights)
        scores = None if evaluate is None else _scores(fitted, evaluate, Path(folder))
    accuracy = None if scores is None or labels is None else top1(scores, labels)
    return Fitted(fitted, trained, accuracy)


def _trained(
    made: TrainingGraph,
    samples: Samples,
    local: LocalTraining,
    folder: Path,
    progress: Callable[[int, int], None] | None,
) -> Trained:
    path = folder / "train.onnx"
    path.write_bytes(graph.serialize(made.model))
    session = runtime.open_training(path, made.training)
    try:
        inputs = graph.inputs(made.source)
        return train(session, made.training, samples, inputs, made.weights, local, progress=progress)
    finally:
        session.close()


def _labels(samples: Samples) -> NDArray[Any]:
    if samples.labels is None:
        raise SamplesError("the evaluation samples have no labels", hint="add an array 'labels' [samples]")
    return samples.labels


def _scores(model: onnx.ModelProto, samples: Samples, folder: Path) -> NDArray[Any]:
    path = folder / "fitted.onnx"
    path.write_bytes(graph.serialize(model))
    session = runtime.open(path)
    try:
        name = session.outputs[0].name
        return np.stack([session.run(feeds)[name].reshape(-1) for feeds in samples.feeds(session.inputs)])
    finally:
        session.close()
