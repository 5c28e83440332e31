"""From a graph to a bundle, whole, on a network that takes milliseconds."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import stages
from converters.order import Wishes, request
from converters.report import Report
from converters.source import open_source
from edgert import accuracy, runtime, trial
from edgert import samples as samples_file
from edgert.bundle import Bundle
from edgert.cli import main
from edgert.samples import Samples
from tests.support import models, onnx_models


@dataclass(frozen=True)
class Made:
    """A converted network and what it was made from."""

    folder: Path
    answer: dict[str, Any]

    @property
    def bundle(self) -> Bundle:
        return Bundle.open(self.folder / "first.edgert")

    @property
    def report(self) -> Report:
        return Report.model_validate_json((self.folder / "first.report.json").read_bytes())

    @property
    def evaluate(self) -> Samples:
        return samples_file.load(self.folder / "evaluate.npz")


def _labels(path: Path, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the float network says: then float32 is always right."""
    session = runtime.backend_for("onnx")[1].open(path)
    try:
        return np.concatenate([session.run({"image": images[i : i + 1]})["scores"] for i in range(len(images))]).argmax(
            1
        )
    finally:
        session.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("convert")
    model = models.write(models.cnn(), folder / "Tiny Net.onnx")
    images = np.random.default_rng(5).random((80, 1, 8, 8), dtype=np.float32)
    np.savez(folder / "calibrate.npz", image=images[:20])
    np.savez(folder / "evaluate.npz", image=images[20:], labels=_labels(model, images[20:]))
    arguments = [
        "convert", str(model), "--profile", "x86-64", "--max-drop", "20", "--train", "--precision", "int8",
        "--calibrate", str(folder / "calibrate.npz"), "--evaluate", str(folder / "evaluate.npz"),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "edgert", *arguments, "--json", "-o", str(folder / "first.edgert")],
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return Made(folder, json.loads(done.stdout))


def test_what_was_chosen_is_reported(made: Made) -> None:
    assert made.answer.keys() == {
        "bundle", "digest", "source", "source_digest", "report", "model", "profile", "precision", "accuracy",
        "accuracy_float", "size_bytes", "size_float_bytes", "latency_ms", "latency_float_ms", "samples",
    }  # fmt: skip
    assert (made.answer["model"], made.answer["profile"], made.answer["precision"]) == ("tiny-net", "x86-64", "int8")
    assert made.answer["accuracy_float"] == 1.0
    assert made.answer["accuracy"] >= 0.8
    assert made.answer["samples"] == 60
    assert made.answer["latency_ms"] > 0
    assert made.answer["digest"] == made.bundle.digest == made.report.bundle
    assert made.report.chosen().size_bytes == made.bundle.require("infer").size_bytes == made.answer["size_bytes"]
    assert all(candidate.reason for candidate in made.report.candidates)


def test_the_bundle_holds_what_its_manifest_says(made: Made) -> None:
    manifest = made.bundle.manifest
    assert [artifact.role for artifact in manifest.artifacts] == ["infer", "train", "weights", "golden", "index"]
    assert manifest.inputs[0].shape == (None, 1, 8, 8)
    assert manifest.training is not None
    assert set(manifest.training.parameters) == {"K", "k", "W", "b"}
    assert manifest.provenance.tools.keys() == {"edgert", "numpy", "onnx", "onnxruntime", "onnxslim"}
    index = json.loads(made.bundle.read(made.bundle.require("index")))
    assert index["operators"]["Conv"] == 1
    assert index["macs"] == 4 * 64 * 9 + 64 * 3


def test_reported_accuracy_is_what_the_bundle_gives(made: Made) -> None:
    opened = runtime.open_bundle(made.bundle)
    try:
        said = [opened.session.run(feed)["scores"] for feed in made.evaluate.feeds(opened.session.inputs)]
    finally:
        opened.session.close()
    assert made.evaluate.labels is not None
    assert accuracy.top1(np.concatenate(said), made.evaluate.labels) == made.answer["accuracy"]


def test_golden_vectors_are_met_and_a_wrong_one_is_not(made: Made, tmp_path: Path) -> None:
    made.bundle.unpack(tmp_path)
    golden, tolerance = tmp_path / "golden" / "golden.npz", made.bundle.manifest.golden.tolerance
    contender = trial.Contender(label="a", path=tmp_path / "infer" / "model.onnx", format="onnx")
    (verdict,) = trial.run([contender], golden=golden, tolerance=tolerance)
    assert verdict.passed
    arrays = samples_file.load_arrays(golden)
    assert len(arrays["input.image"]) == made.bundle.manifest.golden.count == 4
    arrays["output.scores"] = arrays["output.scores"][::-1]
    samples_file.save(golden, arrays)
    (verdict,) = trial.run([contender], golden=golden, tolerance=tolerance)
    assert not verdict.passed


def test_the_source_gives_the_same_bytes_in_another_process(made: Made) -> None:
    output = made.folder / "second.edgert"
    done = subprocess.run(
        [sys.executable, "-m", "edgert", "convert", str(made.folder / "first.source.tar"), "-o", str(output)],
        capture_output=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    assert done.returncode == 0, done.stderr.decode()
    assert output.read_bytes() == (made.folder / "first.edgert").read_bytes()
    assert "chosen" in done.stdout.decode()


def test_a_source_takes_new_weights_by_name(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(made.folder / "w.npz", W=np.zeros((3, 64), np.float32))
    output = made.folder / "rebuilt.edgert"
    arguments = ["convert", str(made.folder / "first.source.tar"), "--weights", str(made.folder / "w.npz")]
    # All scores are the bias now: float32 and int8 agree, and both are wrong on some samples.
    assert main([*arguments, "--json", "-o", str(output)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["accuracy_float"] < 1.0
    assert answer["samples"] == 60
    rebuilt = Bundle.open(output)
    assert rebuilt.digest != made.bundle.digest
    assert rebuilt.manifest.provenance.weights is not None
    assert rebuilt.manifest.provenance.recipe == made.bundle.manifest.provenance.recipe
    weights = rebuilt.unpack(made.folder / "rebuilt")
    arrays = samples_file.load_arrays(next(path for path in weights if path.name == "weights.npz"))
    np.testing.assert_array_equal(arrays["W"], np.zeros((3, 64), np.float32))
    kept = open_source(made.folder / "rebuilt.source.tar")
    assert kept.recipe == open_source(made.folder / "first.source.tar").recipe
    assert kept.model != open_source(made.folder / "first.source.tar").model


def test_without_calibration_float32_is_taken_and_the_report_says_why(made: Made, tmp_path: Path) -> None:
    images = made.evaluate.inputs["image"]
    np.savez(tmp_path / "evaluate.npz", image=images[:8])
    wishes = Wishes("x86-64", evaluate=tmp_path / "evaluate.npz")
    with request(made.folder / "Tiny Net.onnx", wishes) as wanted:
        result = stages.convert(wanted, stages.Outputs(tmp_path / "m.edgert"))
    assert result.report.metric == "cosine"
    assert result.report.chosen().precision == "float32"
    assert "no calibration samples" in result.report.chosen().reason
    assert result.report.chosen().accuracy == pytest.approx(1.0)


def test_forced_int8_that_cannot_be_had_fails_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = models.write(onnx_models.chain(3), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((4, 4), np.float32))
    arguments = ["convert", str(model), "--profile", "x86-64", "--precision", "int8"]
    arguments += ["--calibrate", str(tmp_path / "x.npz")]
    assert main([*arguments, "-o", str(tmp_path / "out" / "m.edgert")]) == 1
    assert capsys.readouterr().err.startswith("error: int8 was asked for but ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "x.npz"]


def test_no_temporary_file_is_left(made: Made) -> None:
    assert not list(made.folder.glob(".*"))
    assert not list(made.folder.glob("*.tmp"))
