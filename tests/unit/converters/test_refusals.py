"""Whatever is wrong with the input: one line `error:`, one line `hint:`, non-zero exit, nothing written."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import isolate
from converters.recipe import Lock, Recipe
from converters.source import Source, pack
from edgert import profiles
from edgert.cli import main
from edgert.errors import ModelError
from tests.support import models, onnx_models

_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"


def _bytes(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def _model(make: Callable[[], Any]) -> Callable[[Path], object]:
    return lambda path: models.write(make(), path)


def _refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str], code: int) -> str:
    output = folder / "output"
    output.mkdir()
    assert main(["convert", *arguments, "-o", str(output / "m.edgert")]) == code
    assert list(output.iterdir()) == []
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    return error


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (_bytes(b""), "is empty"),
        (_bytes(_LFS), "Git LFS pointer"),
        (_bytes(models.cnn().SerializeToString()[:300]), "not a complete ONNX model"),
        (_model(lambda: onnx_models.one_operator("FancyOp", domain="com.acme")), "'FancyOp' of domain 'com.acme'"),
        (_model(lambda: onnx_models.one_operator("NoSuchFusion", domain="com.microsoft")), "cannot be loaded"),
        (_model(lambda: onnx_models.branching(float("nan"))), "NaN"),
        (lambda path: onnx_models.with_external_data(path, location="../w.bin"), "outside the model's folder"),
    ],
)
def test_a_model_that_cannot_be_used(
    write: Callable[[Path], object], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.onnx"
    write(path)
    assert words in _refused([str(path), "--profile", "x86-64"], tmp_path, capsys, 1)


def test_a_missing_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "no.onnx"), "--profile", "x86-64", "-o", str(tmp_path / "m.edgert")]) == 1
    assert "there is no file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["m.onnx"], "which kind of box"),
        (["m.onnx", "--profile", "no-such-box"], "no profile"),
        (["m.onnx", "--profile", "x86-64", "--precision", "int3"], "precision"),
        (["m.onnx", "--profile", "x86-64", "--precision", "int8"], "calibration samples"),
        (["m.source.tar", "--profile", "generic-cpu"], "--profile contradicts"),
        (["m.source.tar", "--calibrate", "x.npz"], "--calibrate contradicts"),
        (["m.source.tar", "--max-drop", "3"], "--max-drop contradicts"),
        (["m.source.tar", "--train"], "--train contradicts"),
    ],
)
def test_options_that_contradict_themselves(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    lock = Lock(profile=profiles.load("x86-64"), precision="float32")
    source = Source(Recipe(model="tiny", profile="x86-64"), lock, models.cnn().SerializeToString(), b"{}")
    Path("m.source.tar").write_bytes(pack(source))
    models.write(models.cnn(), Path("m.onnx"))
    assert words in _refused(arguments, tmp_path, capsys, 2)


def test_an_output_that_is_no_bundle_name_or_is_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = models.write(models.cnn(), tmp_path / "m.onnx")
    (tmp_path / "m.report.json").mkdir()
    for name in ("m.bundle", ".edgert", "m.edgert"):
        assert main(["convert", str(model), "--profile", "x86-64", "-o", str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.report.json"]


def test_a_small_file_that_wants_all_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = models.write(models.huge(1 << 40), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((2, 1), np.float32))
    arguments = [str(model), "--profile", "x86-64", "--evaluate", str(tmp_path / "x.npz")]
    assert "fails on the given inputs" in _refused(arguments, tmp_path, capsys, 1)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"image": np.zeros((2, 1, 8, 8)), "labels": np.array([0, 9])}, "0 to 9"),
        ({"image": np.zeros((2, 1, 8, 8)), "labels": np.array([0])}, "length"),
    ],
)
def test_samples_that_do_not_fit(
    arrays: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = models.write(models.cnn(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", **arrays)
    arguments = [str(model), "--profile", "x86-64", "--evaluate", str(tmp_path / "x.npz")]
    assert words in _refused(arguments, tmp_path, capsys, 1)


def test_a_reading_process_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    model = models.write(models.cnn(), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="took longer"):
        isolate.prepare(model, tmp_path, timeout_s=0.01)


def test_a_file_in_the_working_folder_does_not_stand_in_for_a_library(tmp_path: Path) -> None:
    models.write(models.cnn(), tmp_path / "m.onnx")
    for name in ("onnx", "numpy", "edgert", "converters"):
        (tmp_path / f"{name}.py").write_text("open('was-imported', 'w'); print('{}'); raise SystemExit(3)\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "edgert", "convert", "m.onnx", "--profile", "x86-64", "-o", "m.edgert"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "m.edgert").exists()
    assert not (tmp_path / "was-imported").exists()


def test_models_of_the_library_are_listed_and_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    assert "digits-cnn" in capsys.readouterr().out.split()
    for name in ("a.onnx", "b.onnx"):
        assert main(["models", "make", "digits-cnn", "--seed", "3", "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert main(["models", "make", "no-such-net"]) == 2
