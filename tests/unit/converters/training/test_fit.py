import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from converters.training.fit import fit
from edgert import cli
from edgert.errors import SamplesError
from edgert.federated.plan import LocalTraining
from edgert.samples import Samples, save
from tests.support import models
from tests.support.training import stripes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(models.cnn().SerializeToString())
    for name, seed, count in (("train", 0, 90), ("evaluate", 1, 30)):
        samples, _ = stripes(count, seed=seed)
        assert samples.labels is not None
        save(tmp_path / f"{name}.npz", {**samples.inputs, "labels": samples.labels})
    return tmp_path


def _arguments(folder: Path, *more: str) -> list[str]:
    paths = [str(folder / name) for name in ("model.onnx", "train.npz", "evaluate.npz", "trained.onnx")]
    return ["fit", paths[0], "--train", paths[1], "--evaluate", paths[2], "-o", paths[3], *more]


def test_it_learns_and_writes_the_weights_back_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(_arguments(folder, "--epochs", "6", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"model", "epochs", "loss", "accuracy", "accuracy_evaluate", "examples", "seconds"}
    assert (result["epochs"], result["examples"]) == (6, 90)
    assert result["accuracy_evaluate"] > 0.9
    before, after = (onnx.load(folder / name) for name in ("model.onnx", "trained.onnx"))
    assert {tensor.name for tensor in before.graph.initializer} <= {tensor.name for tensor in after.graph.initializer}
    old = {tensor.name: numpy_helper.to_array(tensor) for tensor in before.graph.initializer}
    new = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    assert all(not np.array_equal(old[name], new[name]) for name in ("K", "k", "W", "b"))


def test_it_says_what_it_did(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(_arguments(folder, "--epochs", "1")) == 0
    shown = capsys.readouterr().out
    assert "90 samples, 1 epochs" in shown
    assert "on the evaluation samples" in shown


def test_the_same_seed_gives_the_same_file(folder: Path) -> None:
    written = []
    for _ in range(2):
        assert cli.main(_arguments(folder, "--epochs", "1", "--seed", "5")) == 0
        written.append((folder / "trained.onnx").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("more", [("--momentum", "1.5"), ("--learning-rate", "-1"), ("--epochs", "0")])
def test_options_out_of_range_are_wrong_usage(
    folder: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, str]
) -> None:
    assert cli.main(_arguments(folder, *more)) == 2
    assert "error:" in capsys.readouterr().err


def test_training_that_diverges_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples, _ = stripes(20)
    assert samples.labels is not None
    save(folder / "train.npz", {"image": samples.inputs["image"] * np.float32(1e30), "labels": samples.labels})
    assert cli.main(_arguments(folder)) == 1
    shown = capsys.readouterr().err
    assert "error: training diverged" in shown
    assert "hint: lower the learning rate" in shown
    assert not (folder / "trained.onnx").exists()


def test_a_damaged_model_is_one_line_and_nothing_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.onnx").write_bytes(b"\x08\x09garbage")
    assert cli.main(_arguments(folder)) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not (folder / "trained.onnx").exists()


def test_evaluation_samples_without_labels_are_refused_before_training() -> None:
    samples, _ = stripes(20)
    calls: list[int] = []
    with pytest.raises(SamplesError, match="evaluation samples have no labels"):
        fit(
            models.cnn(), samples, LocalTraining(), batch_size=4, evaluate=Samples(samples.inputs),
            progress=lambda done, _: calls.append(done),
        )  # fmt: skip
    assert not calls
