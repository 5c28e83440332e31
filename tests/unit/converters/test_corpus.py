"""Real models with real data, and hostile files: found through the variable EDGERT_CASES, skipped without it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert.bundle import Bundle

_CASES = Path(os.environ.get("EDGERT_CASES", ""))
pytestmark = pytest.mark.skipif(
    not os.environ.get("EDGERT_CASES"), reason="EDGERT_CASES does not name the real-model corpus"
)

_ATTACKS = {
    "deep_chain_20000": "",
    "ext_traversal": "outside the model's folder",
    "huge_constantofshape": "fails on made-up inputs",
    "unicode_and_slash_names": "",
}


def _edgert(arguments: list[str], timeout_s: float) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "edgert", *arguments]
    return subprocess.run(command, capture_output=True, check=False, timeout=timeout_s)


def _data(name: str) -> tuple[Any, Any, Any]:
    if name == "resnet8":
        with np.load(_CASES / "data" / "cifar10_jpeg.npz") as file:
            return file["calib_x"][:200].astype(np.float32), file["x"][:1000].astype(np.float32), file["y"][:1000]
    with np.load(_CASES / "data" / "kws01_first400.npz") as file:
        return file["calib_f32"], file["x_f32"], file["y"]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("resnet8", "vision_resnet8_cifar10/resnet8_float.onnx"),
        ("kws", "audio_kws_dscnn/kws_float.onnx"),
    ],
)
def test_int8_is_within_a_point_and_smaller_and_the_report_is_true(name: str, model: str, tmp_path: Path) -> None:
    calibrate, x, y = _data(name)
    np.savez(tmp_path / "calibrate.npz", input_1=calibrate)
    np.savez(tmp_path / "evaluate.npz", input_1=x, labels=y)
    bundle = tmp_path / "m.edgert"
    done = _edgert(
        ["convert", str(_CASES / model), "--profile", "x86-64", "--json", "-o", str(bundle), "--calibrate",
         str(tmp_path / "calibrate.npz"), "--evaluate", str(tmp_path / "evaluate.npz")],
        120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    answer = json.loads(done.stdout)
    assert answer["precision"] == "int8"
    assert answer["accuracy"] >= answer["accuracy_float"] - 0.01
    assert answer["size_bytes"] < answer["size_float_bytes"] / 2
    inferred = _edgert(["infer", str(bundle), "--input", str(tmp_path / "evaluate.npz"), "--json"], 60)
    measured = json.loads(inferred.stdout)
    report = json.loads((tmp_path / "m.report.json").read_bytes())
    (chosen,) = [row for row in report["candidates"] if row["chosen"]]
    opened = Bundle.open(bundle)
    assert report["bundle"] == answer["digest"] == opened.digest
    assert (report["metric"], report["measured_on"]) == ("top1", "evaluate")
    assert report["samples"] == measured["samples"] == len(y)
    assert chosen["precision"] == "int8"
    assert chosen["accuracy"] == measured["accuracy"] == answer["accuracy"]
    assert chosen["size_bytes"] == len(opened.read(opened.require("infer"))) == answer["size_bytes"]


@pytest.mark.parametrize("name", sorted(_ATTACKS))
def test_a_hostile_file_is_converted_or_refused_in_time(name: str, tmp_path: Path) -> None:
    model = _CASES / "nasty" / "attacks" / name / "model.onnx"
    done = _edgert(["convert", str(model), "--profile", "x86-64", "--name", "m", "-o", str(tmp_path / "m.edgert")], 60)
    if not _ATTACKS[name]:
        assert done.returncode == 0, done.stderr.decode()
        assert Bundle.open(tmp_path / "m.edgert").manifest.model == "m"
        return
    assert done.returncode == 1
    error, hint = done.stderr.decode().splitlines()
    assert error.startswith("error: ")
    assert _ATTACKS[name] in error
    assert hint.startswith("hint: ")
    assert list(tmp_path.iterdir()) == []
