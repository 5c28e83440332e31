"""The doctor, in installations that are broken in one way each; every child is a real process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgert import doctor


def diagnosis(part: str, *path: Path, python: str = sys.executable) -> dict[str, Any]:
    """The checks of one part by name, with `path` put before everything else that is imported."""
    code = (
        "import json; from dataclasses import asdict; from edgert import doctor; "
        f"print(json.dumps({{check.name: asdict(check) for check in doctor.{part}()}}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [python, "-P", "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_foreign_package_agents_is_found(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents/__init__.py").write_text("")
    (tmp_path / "robot-1.0.dist-info").mkdir()
    (tmp_path / "robot-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: robot\nVersion: 1.0\n")
    (tmp_path / "robot-1.0.dist-info/RECORD").write_text("agents/__init__.py,,\n")
    check = diagnosis("agents_package", tmp_path)["package agents"]
    assert (check["ok"], check["needed"]) == (False, True)
    assert "robot" in check["found"]
    assert "environment of its own" in check["hint"]


def test_a_stray_folder_agents_is_found(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents/__init__.py").write_text("")
    check = diagnosis("agents_package", tmp_path)["package agents"]
    assert not check["ok"]
    assert str(tmp_path) in check["found"]


def test_an_installed_runtime_that_cannot_be_imported_is_found(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime/__init__.py").write_text("raise ImportError('libonnxruntime.so: wrong ELF class')\n")
    checks = diagnosis("backends", tmp_path)
    assert not checks["backend onnxruntime"]["ok"]
    assert "wrong ELF class" in checks["backend onnxruntime"]["found"]
    assert checks["backends"]["ok"]


def test_without_any_runtime_the_installation_cannot_work(tmp_path: Path) -> None:
    for name in ("onnxruntime", "ai_edge_litert"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('no')\n")
    check = diagnosis("backends", tmp_path)["backends"]
    assert (check["ok"], check["needed"]) == (False, True)


def test_a_probe_that_kills_its_process_is_found(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime/__init__.py").write_text("import os; os.abort()\n")
    check = diagnosis("backends", tmp_path)["backend onnxruntime"]
    assert not check["ok"]
    assert "SIGABRT" in check["found"]


def test_a_broken_tflite_runtime_is_found_with_the_way_out(tmp_path: Path) -> None:
    """A numpy 2 over tflite-runtime: the import works, the interpreter does not."""
    python = os.environ.get("EDGERT_TFLITE_PYTHON", "")
    if not python or sys.version_info[:2] != (3, 11):
        pytest.skip("needs Python 3.11 and EDGERT_TFLITE_PYTHON, a Python with tflite-runtime 2.14 (`make test`)")
    import numpy as np

    (tmp_path / "numpy").symlink_to(Path(np.__file__).parent)
    (tmp_path / "numpy.libs").symlink_to(Path(np.__file__).parent.parent / "numpy.libs")
    check = diagnosis("backends", tmp_path, Path(doctor.__file__).parent.parent, python=python)["backend tflite"]
    assert (check["ok"], check["needed"]) == (False, True)
    assert "install numpy below 2" in check["found"]
