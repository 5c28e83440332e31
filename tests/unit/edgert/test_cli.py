"""The core's verbs: results on standard output, one line ``error:`` and one ``hint:`` otherwise."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert import __version__, profiles, samples
from edgert.bundle import Bundle
from edgert.cli import main
from tests.support import models, tflite_models

X = np.random.default_rng(0).random((8, 4), dtype=np.float32)
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return models.bundle_file(tmp_path / "m.edgert")


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    labels = np.argmax(models.mlp_answer(X), axis=1)
    labels[0] = (labels[0] + 1) % 3
    samples.save(tmp_path / "s.npz", {"x": X, "labels": labels})
    return tmp_path / "s.npz"


def said(capsys: Captured, *arguments: object) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: Captured, code: int, *arguments: object) -> tuple[str, str]:
    """The error and the hint of a verb that fails; each one line."""
    assert main([*map(str, arguments)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    error, *rest = err.strip().splitlines()
    assert error.startswith("error: ")
    assert len(rest) <= 1
    assert all(line.startswith("hint: ") for line in rest)
    return error, "".join(rest)


@pytest.mark.parametrize("arguments", [[], ["profiles"]])
def test_a_group_without_a_verb_prints_its_help(capsys: Captured, arguments: list[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert "Usage: edgert" in out
    assert err == ""


def test_the_version_is_told(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"edgert {__version__}\n"


@pytest.mark.parametrize("arguments", [["fly"], ["inspect"], ["infer", "m.edgert", "--wings"], ["profiles", "fly"]])
def test_wrong_usage_is_exit_code_2(capsys: Captured, arguments: list[str]) -> None:
    _, hint = refused(capsys, 2, *arguments)
    assert "--help" in hint


def test_an_error_is_one_json_object_when_json_is_asked_for(capsys: Captured, tmp_path: Path) -> None:
    assert main(["inspect", str(tmp_path / "none.edgert"), "--json"]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert "there is no file" in found["error"]
    assert found["exit_code"] == 1
    assert err.startswith("error: ")


def test_inspect_shows_what_is_inside(capsys: Captured, bundle: Path) -> None:
    assert main(["inspect", str(bundle)]) == 0
    out = capsys.readouterr().out
    for word in ("tiny", "generic-cpu", "scores", "?x3", "0.0001", "model.onnx", "golden.npz", "float32"):
        assert word in out
    found = said(capsys, "inspect", bundle)
    assert found["digest"] == Bundle.open(bundle).digest
    assert found["manifest"]["model"] == "tiny"
    assert found["size_bytes"] == bundle.stat().st_size


def test_unpack_writes_the_artifacts(capsys: Captured, bundle: Path, tmp_path: Path) -> None:
    found = said(capsys, "unpack", bundle, "-o", tmp_path / "out")
    assert found["files"] == [
        str(tmp_path / "out" / part) for part in ("manifest.json", "infer/model.onnx", "golden/golden.npz")
    ]
    assert all(Path(file).is_file() for file in found["files"])
    error, hint = refused(capsys, 2, "unpack", bundle, "-o", tmp_path / "out")
    assert "not an empty folder" in error
    assert hint


def test_infer_runs_the_samples_and_counts_what_is_right(
    capsys: Captured, bundle: Path, labelled: Path, tmp_path: Path
) -> None:
    found = said(capsys, "infer", bundle, "--input", labelled, "-o", tmp_path / "y.npz")
    assert (found["accuracy"], found["samples"]) == (7 / 8, 8)
    assert (found["backend"], found["precision"]) == ("onnxruntime", "float32")
    assert 0 < found["latency_ms"] < 50
    answers = samples.load_arrays(tmp_path / "y.npz")
    np.testing.assert_allclose(answers["scores"], models.mlp_answer(X), atol=1e-5)


def test_infer_in_words(capsys: Captured, bundle: Path, labelled: Path) -> None:
    assert main(["infer", str(bundle), "--input", str(labelled)]) == 0
    out = capsys.readouterr().out
    assert "8 samples, top-1 87.50 %" in out
    assert "float32 artifact on onnxruntime" in out


def test_infer_without_labels_says_nothing_about_accuracy(capsys: Captured, tmp_path: Path) -> None:
    file = models.bundle_file(tmp_path / "lite.edgert", model=tflite_models.mlp(), format_="tflite")
    samples.save(tmp_path / "x.npz", {"x": X})
    found = said(capsys, "infer", file, "--input", tmp_path / "x.npz")
    assert (found["accuracy"], found["backend"], found["output"]) == (None, "tflite", None)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [({"y": X}, "no array 'x'"), ({"x": X[:, :2]}, "have shape"), ({"labels": np.zeros(3)}, "no input arrays")],
)
def test_infer_refuses_samples_that_do_not_fit(
    capsys: Captured, bundle: Path, tmp_path: Path, arrays: dict[str, Any], words: str
) -> None:
    samples.save(tmp_path / "x.npz", arrays)
    error, _ = refused(capsys, 1, "infer", bundle, "--input", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
    assert words in error
    assert not (tmp_path / "y.npz").exists()


def test_infer_survives_a_model_that_crashes_the_runtime(capsys: Captured, labelled: Path, tmp_path: Path) -> None:
    data = tflite_models.mlp(quantized_io=True, zero_point=2**31)
    file = models.bundle_file(tmp_path / "bad.edgert", model=data, format_="tflite")
    error, hint = refused(capsys, 1, "infer", file, "--input", labelled, "-o", tmp_path / "y.npz")
    assert "crashed (SIGSEGV)" in error
    assert hint
    assert not (tmp_path / "y.npz").exists()


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x7fELF" + bytes(2000)])
@pytest.mark.parametrize("verb", [["inspect"], ["unpack", "-o", "out"], ["infer", "--input", "s.npz"]])
def test_a_file_that_is_no_bundle_is_refused_by_every_verb(
    capsys: Captured, tmp_path: Path, verb: list[str], content: bytes
) -> None:
    (tmp_path / "m.edgert").write_bytes(content)
    where = [str(tmp_path / word) if word in ("out", "s.npz") else word for word in verb]
    error, hint = refused(capsys, 1, where[0], tmp_path / "m.edgert", *where[1:])
    assert "not an EdgeRT bundle" in error
    assert hint
    assert list(tmp_path.iterdir()) == [tmp_path / "m.edgert"]


def test_profiles_are_listed_shown_and_matched(capsys: Captured) -> None:
    listed = said(capsys, "profiles", "list")
    assert [row["name"] for row in listed["profiles"]] == profiles.names()
    shown = said(capsys, "profiles", "show", "raspberry-pi-5")
    assert (shown["arch"], shown["reduce_range"]) == ("aarch64", False)
    matched = said(capsys, "profiles", "match")
    assert matched["best"] in profiles.names()
    for verb in (["list"], ["show", "x86-64"], ["match"]):
        assert main(["profiles", *verb]) == 0
        assert "x86" in capsys.readouterr().out


def test_an_unknown_profile_and_an_unknown_key_are_refused(capsys: Captured, tmp_path: Path) -> None:
    error, hint = refused(capsys, 2, "profiles", "show", "toaster")
    assert "toaster" in error
    assert "generic-cpu" in hint
    (tmp_path / "mine.toml").write_text('description = "x"\nwatts = 5\n')
    error, hint = refused(capsys, 2, "profiles", "show", tmp_path / "mine.toml")
    assert "watts" in error
    assert "memory_bytes" in hint


def test_doctor_finds_this_installation_healthy(capsys: Captured) -> None:
    found = said(capsys, "doctor")
    assert found["healthy"] is True
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["backend onnxruntime"]["ok"]
    assert checks["backend tflite"]["found"].startswith("ai-edge-litert")
    assert checks["package agents"]["ok"]
    assert {"edgert", "machine", "backends", "mosquitto"} <= set(checks)
    assert all(check["found"] and "\n" not in check["found"] for check in found["checks"])


def test_the_command_works_as_a_process_and_in_a_broken_pipe(bundle: Path) -> None:
    command = [sys.executable, "-m", "edgert", "inspect", str(bundle), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["manifest"]["model"] == "tiny"
    assert done.stderr == ""
    missing = subprocess.run([*command[:4], "none.edgert"], capture_output=True, text=True, timeout=60, check=False)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith("error: there is no file none.edgert")
    closed = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert closed.stdout is not None
    closed.stdout.close()
    assert closed.stderr is not None
    with closed.stderr:
        assert b"Traceback" not in closed.stderr.read()
    assert closed.wait(30) in (0, 1, 120)


def test_verbs_are_there_once_however_often_the_command_runs(capsys: Captured) -> None:
    for _ in range(2):
        main(["--help"])
        assert capsys.readouterr().out.count("\n  infer ") == 1
