"""The training session of onnxruntime and the one local loop, on graphs that the converters build."""

import copy
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.training.artifact import TrainingGraph
from converters.training.build import build
from edgert.backends.base import TrainingSession
from edgert.errors import BackendError, CheckError, SamplesError
from edgert.federated.plan import LocalTraining
from edgert.federated.training import Trained, train
from edgert.samples import Samples
from edgert.values import TensorSpec, Weights
from tests.support import models
from tests.support.training import opened, stripes

_LOCAL = LocalTraining(epochs=4, learning_rate=0.02)


@pytest.fixture
def made() -> TrainingGraph:
    return build(models.cnn(), batch_size=8)


@pytest.fixture
def session(made: TrainingGraph, tmp_path: Path) -> Iterator[TrainingSession]:
    session = opened(made, tmp_path)
    yield session
    session.close()


def _batch(made: TrainingGraph, seed: int = 0) -> dict[str, Any]:
    samples, _ = stripes(8, seed=seed)
    assert samples.labels is not None
    return {**samples.inputs, "labels": samples.labels, "sample_weight": np.ones(8, np.float32)}


def _trained(
    session: TrainingSession, made: TrainingGraph, samples: Samples, specs: tuple[TensorSpec, ...], **options: Any
) -> Trained:
    local = options.pop("local", _LOCAL)
    return train(session, made.training, samples, specs, made.weights, local, **options)


def _same(one: Weights, other: Weights) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


_RATES = {"lr": 0.1, "momentum": 0.9}


# The session


def test_a_step_follows_the_formula_and_carries_its_state(
    made: TrainingGraph, session: TrainingSession, tmp_path: Path
) -> None:
    """Two steps in the session equal two runs of the graph with state and weights handed over in numpy."""
    import onnxruntime as ort

    plain = ort.InferenceSession(made.model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in plain.get_outputs()]
    weights = dict(made.weights)
    state = {name: np.zeros_like(weights[kept]) for kept, name in zip(made.weights, made.training.state, strict=True)}
    rates = {name: np.array(value, np.float32) for name, value in _RATES.items()}
    session.restore(made.weights)
    for step in range(5):
        results = dict(zip(names, plain.run(names, {**_batch(made, step), **weights, **state, **rates}), strict=True))
        metrics = session.step(_batch(made, step), _RATES)
        weights = {name: results[f"{name}.next"] for name in weights}
        state = {name: results[f"{name}.next"] for name in state}
        assert metrics.loss == pytest.approx(float(results["loss"]), rel=1e-6)
        assert metrics.correct == float(results["correct"])
        for name, value in session.export().items():
            np.testing.assert_allclose(value, weights[name], rtol=1e-5, atol=1e-7)


def test_no_buffer_shares_memory_with_another_or_with_numpy(made: TrainingGraph, session: Any) -> None:
    start = copy.deepcopy(made.weights)
    session.restore(made.weights)
    buffers = [value for values in (session._feeds, *session._sets, session._metrics) for value in values.values()]
    spans = sorted((value.data_ptr(), value.data_ptr() + value.tensor_size_in_bytes()) for value in buffers)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    given = {array.ctypes.data for array in made.weights.values()}
    assert not given & {begin for begin, _ in spans}
    for step in range(3):
        session.step(_batch(made, step), _RATES)
    assert _same(made.weights, start)


def test_what_a_step_writes_is_what_the_next_one_reads(made: TrainingGraph, session: Any) -> None:
    session.restore(made.weights)
    first, second = session._sets
    before = {name: first[name].data_ptr() for name in first}
    session.step(_batch(made), _RATES)
    assert session._sets[session._current] is second
    session.step(_batch(made), _RATES)
    assert session._sets[session._current] is first
    assert before == {name: first[name].data_ptr() for name in first}


def test_buffers_that_share_memory_are_refused() -> None:
    import onnxruntime as ort

    from edgert.backends.onnxruntime import _refuse_shared_memory

    array = np.zeros(4, np.float32)
    one, two = (ort.OrtValue.ortvalue_from_numpy(array) for _ in range(2))
    with pytest.raises(BackendError, match="share memory"):
        _refuse_shared_memory([{"a": one}, {"b": two}])


def test_exported_weights_are_copies(made: TrainingGraph, session: TrainingSession) -> None:
    session.restore(made.weights)
    exported = session.export()
    kept = copy.deepcopy(exported)
    session.step(_batch(made), _RATES)
    session.step(_batch(made), _RATES)
    assert _same(exported, kept)
    exported["W"][:] = 7
    assert not np.array_equal(session.export()["W"], exported["W"])


def test_restoring_clears_the_optimizer_state(made: TrainingGraph, session: TrainingSession) -> None:
    def two_steps() -> Weights:
        session.restore(made.weights)
        for step in range(2):
            session.step(_batch(made, step), _RATES)
        return session.export()

    assert _same(two_steps(), two_steps())


def test_rows_of_weight_zero_change_nothing(made: TrainingGraph, session: TrainingSession) -> None:
    batch = _batch(made)
    batch["sample_weight"][5:] = 0
    session.restore(made.weights)
    one = session.step(batch, _RATES)
    weights = session.export()
    batch["image"] = batch["image"].copy()
    batch["image"][5:] = 1e3
    batch["labels"][5:] = 0
    session.restore(made.weights)
    assert session.step(batch, _RATES) == one
    assert _same(session.export(), weights)


def test_a_batch_of_padding_alone_moves_nothing_and_is_a_number(made: TrainingGraph, session: TrainingSession) -> None:
    batch = _batch(made)
    batch["sample_weight"][:] = 0
    session.restore(made.weights)
    assert session.step(batch, _RATES) == (0.0, 0.0)
    assert _same(session.export(), made.weights)


def test_nothing_runs_before_there_are_weights(made: TrainingGraph, session: TrainingSession) -> None:
    with pytest.raises(BackendError, match="no weights yet"):
        session.step(_batch(made), _RATES)
    with pytest.raises(BackendError, match="no weights yet"):
        session.export()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "missing 'labels'"),
        ({"other": np.zeros(1)}, "unknown 'other'"),
        ({"labels": np.zeros(8, np.int32)}, "'labels' is int32"),
        ({"image": np.zeros((7, 1, 8, 8), np.float32)}, "the model takes float32"),
        ({"sample_weight": [1.0] * 8}, "'sample_weight' is list"),
    ],
)
def test_feeds_that_do_not_fit_are_named(
    made: TrainingGraph, session: TrainingSession, change: dict[str, Any], message: str
) -> None:
    session.restore(made.weights)
    feeds = {name: value for name, value in (_batch(made) | change).items() if value is not None}
    with pytest.raises(BackendError, match=message):
        session.step(feeds, _RATES)


def test_weights_that_do_not_fit_are_named(made: TrainingGraph, session: TrainingSession) -> None:
    with pytest.raises(BackendError, match=r"the weights do not fit the model: missing 'K'"):
        session.restore({name: value for name, value in made.weights.items() if name != "K"})
    with pytest.raises(BackendError, match=r"'k' is float64 \[4\]"):
        session.restore(made.weights | {"k": np.zeros(4)})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": ("K", "k", "W", "other")},
        {"batch_size": 9},
        {"loss": "lost"},
        {"state": ()},
        {"state": ("k.velocity", "K.velocity", "W.velocity", "b.velocity")},
    ],
)
def test_a_graph_that_is_not_as_described_is_refused(
    made: TrainingGraph, tmp_path: Path, change: dict[str, Any]
) -> None:
    from dataclasses import replace

    other = replace(made, training=made.training.model_copy(update=change))
    with pytest.raises(BackendError):
        opened(other, tmp_path)


def test_a_file_that_is_no_graph_is_refused(made: TrainingGraph, tmp_path: Path) -> None:
    from edgert.backends.onnxruntime import plugin

    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"cannot open broken\.onnx"):
        plugin.open_training(path, made.training)


# The loop


def test_it_learns(made: TrainingGraph, session: TrainingSession) -> None:
    samples, specs = stripes(120)
    trained = _trained(session, made, samples, specs)
    assert len(trained.losses) == 4
    assert trained.losses[-1] < 0.2 * trained.losses[0]
    assert trained.accuracy > 0.95
    assert trained.examples == 120


def test_the_seeds_alone_decide_the_order(made: TrainingGraph, session: TrainingSession) -> None:
    samples, specs = stripes(30)
    one = _trained(session, made, samples, specs, seed=(3, 1))
    assert _same(one.weights, _trained(session, made, samples, specs, seed=(3, 1)).weights)
    assert not _same(one.weights, _trained(session, made, samples, specs, seed=(3, 2)).weights)
    other = _LOCAL.model_copy(update={"seed": 8})
    assert not _same(one.weights, _trained(session, made, samples, specs, local=other, seed=(3, 1)).weights)


def test_the_loss_of_an_epoch_is_the_mean_over_its_samples(made: TrainingGraph, session: TrainingSession) -> None:
    """With a rate too small to move anything the order and the padding must not matter."""
    samples, specs = stripes(19)
    still = LocalTraining(epochs=2, learning_rate=1e-12, momentum=0)
    trained = _trained(session, made, samples, specs, local=still)
    assert samples.labels is not None
    assert trained.losses[0] == pytest.approx(trained.losses[1], rel=1e-5)
    session.restore(made.weights)
    feeds = {"sample_weight": np.ones(8, np.float32)}
    steps = []
    for i in range(19):
        rows = {name: np.repeat(array[i : i + 1], 8, axis=0) for name, array in samples.inputs.items()}
        steps.append(
            session.step({**feeds, **rows, "labels": np.repeat(samples.labels[i], 8)}, {"lr": 0, "momentum": 0})
        )
    assert trained.losses[0] == pytest.approx(np.mean([step.loss for step in steps]), rel=1e-5)
    assert trained.accuracy == pytest.approx(np.mean([step.correct / 8 for step in steps]))


def test_progress_counts_every_step(made: TrainingGraph, session: TrainingSession) -> None:
    samples, specs = stripes(19)
    seen: list[tuple[int, int]] = []
    _trained(session, made, samples, specs, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 12) for i in range(1, 13)]


def test_fewer_samples_than_a_batch_are_enough(made: TrainingGraph, session: TrainingSession) -> None:
    samples, specs = stripes(3)
    assert _trained(session, made, samples, specs).examples == 3


def test_whole_inputs_are_taken_as_rows(made: TrainingGraph, session: TrainingSession) -> None:
    samples, specs = stripes(20)
    whole = Samples({"image": samples.inputs["image"][:, None]}, samples.labels)
    one = _trained(session, made, samples, specs)
    assert _same(one.weights, _trained(session, made, whole, specs).weights)


def test_a_fixed_batch_of_one_in_the_inference_graph_is_no_obstacle(
    made: TrainingGraph, session: TrainingSession
) -> None:
    samples, _ = stripes(20)
    specs = (TensorSpec("image", "float32", (1, 1, 8, 8)),)
    assert _trained(session, made, samples, specs).examples == 20


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "no labels"),
        (np.array([0, 1, 3] * 4), "from 0 to 3"),
        (np.array([0, 1, -1] * 4), "from -1 to 1"),
        (np.zeros(12), "whole numbers"),
        (np.zeros((12, 1), np.int64), "whole numbers"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(
    made: TrainingGraph, session: TrainingSession, labels: Any, message: str
) -> None:
    samples, specs = stripes(12)
    with pytest.raises(SamplesError, match=message):
        _trained(session, made, Samples(samples.inputs, labels), specs)


def test_inputs_that_do_not_fit_are_refused(made: TrainingGraph, session: TrainingSession) -> None:
    samples, specs = stripes(12)
    with pytest.raises(SamplesError, match="no array 'image'"):
        _trained(session, made, Samples({"other": samples.inputs["image"]}, samples.labels), specs)
    with pytest.raises(SamplesError, match=r"\?x1x8x8"):
        _trained(session, made, Samples({"image": np.zeros((12, 1, 8, 7))}, samples.labels), specs)


@pytest.mark.parametrize("poison", [np.inf, np.nan, 1e30])
def test_training_that_diverges_is_reported(made: TrainingGraph, session: TrainingSession, poison: float) -> None:
    samples, specs = stripes(12)
    samples.inputs["image"][5, 0, 2, 2] = poison
    with pytest.raises(CheckError, match="diverged") as caught:
        _trained(session, made, samples, specs)
    assert "learning rate" in caught.value.hint
