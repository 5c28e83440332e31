"""What is particular to TFLite: quantized tensors, names, delegates, and the older runtime in its own environment."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert import plugins
from edgert.backends import tflite
from edgert.backends.base import SessionOptions
from edgert.errors import BackendError
from tests.support import models, tflite_models

X = np.random.default_rng(0).random((5, 4), dtype=np.float32)
ROOT = Path(__file__).parents[4]


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    return tflite_models.write(tflite_models.mlp(quantized_io=True), tmp_path / "q.tflite")


def test_the_model_inside_the_probe_is_the_one_that_the_writer_gives() -> None:
    assert tflite_models.relu() == tflite._PROBE_MODEL


def test_a_quantized_model_is_fed_and_read_in_real_numbers(quantized: Path) -> None:
    session = tflite.plugin.open(quantized)
    assert (session.inputs[0].dtype, session.outputs[0].dtype) == ("float32", "float32")
    rounded = (np.rint(X * 64) / 64).astype(np.float32)
    wanted = np.clip(np.rint(models.mlp_answer(rounded) * 8), -128, 127) / 8
    np.testing.assert_allclose(session.run({"x": X})["scores"], wanted, atol=1 / 8)
    session.close()


def test_values_out_of_range_saturate_and_never_wrap(quantized: Path) -> None:
    session = tflite.plugin.open(quantized)
    top = session.run({"x": np.full((1, 4), 127 / 64, np.float32)})["scores"]
    for beyond in (5.0, 1e9, np.inf):
        np.testing.assert_array_equal(session.run({"x": np.full((1, 4), beyond, np.float32)})["scores"], top)
    session.close()


def test_a_provider_list_without_the_cpu_allows_no_silent_fallback(tmp_path: Path) -> None:
    path = tflite_models.write(tflite_models.mlp(), tmp_path / "m.tflite")
    assert tflite.plugin.open(path, SessionOptions(providers=("XNNPACK",))).nodes_by_provider() == {"XNNPACK": 2}
    assert tflite.plugin.open(path, SessionOptions(providers=("CPU",))).nodes_by_provider() == {"CPU": 2}


def test_a_delegate_that_cannot_be_loaded_is_named(quantized: Path) -> None:
    options = SessionOptions(providers=("Npu", "CPU"), provider_options={"Npu": {"library": "/nowhere/libnpu.so"}})
    with pytest.raises(BackendError, match=r"delegate 'Npu': there is no file /nowhere/libnpu\.so"):
        tflite.plugin.open(quantized, options)


def test_a_partition_that_stores_a_variable_is_counted_whole() -> None:
    ops = [
        {"op_name": "VAR_HANDLE", "inputs": [], "outputs": [1]},
        {"op_name": "ADD", "inputs": [0, 0], "outputs": [2]},
        {"op_name": "ASSIGN_VARIABLE", "inputs": [1, 2], "outputs": []},
        {"op_name": "MUL", "inputs": [0, 0], "outputs": [3]},
        {"op_name": "CUSTOM", "inputs": [3], "outputs": [4]},
        {"op_name": "DELEGATE", "inputs": [0, 1], "outputs": [3]},
    ]
    assert tflite._partition(ops, "XNNPACK") == {"XNNPACK": 1, "CPU": 4}
    ops[-1]["outputs"] = [3]
    ops[3]["inputs"] = [2, 0]
    assert tflite._partition(ops, "XNNPACK") == {"XNNPACK": 3, "CPU": 2}


def in_the_older_environment(code: str, *arguments: str) -> Any:
    """What `code` prints as JSON, run by the Python that has tflite-runtime."""
    python = os.environ.get("EDGERT_TFLITE_PYTHON", "")
    if not python:
        pytest.skip("EDGERT_TFLITE_PYTHON names no Python with tflite-runtime 2.14 (`make test` makes one)")
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.defpath}
    done = subprocess.run(
        [python, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_tflite_runtime_gives_the_same_answers(tmp_path: Path, quantized: Path) -> None:
    tflite_models.write(tflite_models.mlp(), tmp_path / "m.tflite")
    np.savez(tmp_path / "x.npz", x=X)
    code = """
import json, pathlib, sys
import numpy as np
from edgert.backends.tflite import plugin
folder = pathlib.Path(sys.argv[1])
x = np.load(folder / "x.npz")["x"]
answers = {}
for name in ("m", "q"):
    session = plugin.open(folder / f"{name}.tflite")
    answers[name] = [session.run({"x": x[:rows]})["scores"].tolist() for rows in (1, 5, 2)]
    answers[name + ".nodes"] = session.nodes_by_provider()
print(json.dumps({"version": plugin.probe().version, **answers}))
"""
    found = in_the_older_environment(code, str(tmp_path))
    assert found["version"] == "tflite-runtime 2.14.0"
    assert found["m.nodes"] == {"XNNPACK": 2}
    for name in ("m", "q"):
        session = plugins.load("edgert.backends", "tflite").open(tmp_path / f"{name}.tflite")
        for rows, answer in zip((1, 5, 2), found[name], strict=True):
            np.testing.assert_allclose(
                answer, session.run({"x": X[:rows]})["scores"], atol=1e-5 if name == "m" else 1 / 8
            )


def test_a_trial_survives_what_tflite_runtime_does_not(tmp_path: Path) -> None:
    whole = tflite_models.mlp()
    for place in (27, 51, 397):  # offsets between tables: this runtime follows them wherever they lead
        (tmp_path / f"bad-{place}.tflite").write_bytes(whole[:place] + b"\x40" + whole[place + 1 :])
    code = """
import json, pathlib, sys
from edgert import trial
paths = sorted(pathlib.Path(sys.argv[1]).glob("bad-*.tflite"))
verdicts = trial.run([trial.Contender(label=path.stem, path=path, format="tflite") for path in paths], rounds=1)
print(json.dumps([[verdict.passed, verdict.stage, verdict.reason] for verdict in verdicts]))
"""
    verdicts = in_the_older_environment(code, str(tmp_path))
    assert len(verdicts) == 3
    assert not any(passed for passed, _, _ in verdicts)
    assert any("SIGSEGV" in reason or "SIGBUS" in reason for _, _, reason in verdicts)


def test_numpy_2_under_tflite_runtime_is_found_by_the_probe(tmp_path: Path) -> None:
    """The numpy of this environment is laid over the older one, as an upgrade by mistake would."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the numpy of this environment fits Python 3.11 only where this runs on it")
    (tmp_path / "numpy").symlink_to(Path(np.__file__).parent)
    (tmp_path / "numpy.libs").symlink_to(Path(np.__file__).parent.parent / "numpy.libs")
    code = """
import json, os, sys
os.environ["PYTHONPATH"] = sys.argv[1] + os.pathsep + os.environ["PYTHONPATH"]
import numpy
from edgert import trial
print(json.dumps([numpy.__version__, *trial.probe("tflite")]))
"""
    numpy_version, available, version, reason = in_the_older_environment(code, str(tmp_path))
    assert numpy_version.startswith("1.")
    assert (available, version) == (False, "tflite-runtime 2.14.0")
    assert "built for numpy 1" in reason
