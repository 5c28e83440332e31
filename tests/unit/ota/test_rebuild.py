"""The conversion in a child process: what it says, that it may fail, and the gate."""

import sys
from pathlib import Path

import pytest

from edgert.errors import CheckError, EdgeRTError, FaultError
from edgert.samples import save
from ota.rebuild import gate, rebuild
from tests.support.fleet import WEIGHTS
from tests.support.loop import run


def test_a_conversion_that_refuses_says_why(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"not a source")
    save(tmp_path / "w.npz", WEIGHTS)
    with pytest.raises(CheckError, match=r"the conversion failed: .*s.tar") as caught:
        run(rebuild(tmp_path / "s.tar", tmp_path / "w.npz", tmp_path / "o.edgert", timeout_s=60))
    assert caught.value.hint
    assert not (tmp_path / "o.edgert").exists()


def test_what_lies_in_the_working_folder_takes_the_place_of_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "typer.py").write_text("raise SystemExit(7)")
    (tmp_path / "s.tar").write_bytes(b"not a source")
    save(tmp_path / "w.npz", WEIGHTS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckError, match=r"the conversion failed: .*s.tar"):
        run(rebuild(tmp_path / "s.tar", tmp_path / "w.npz", tmp_path / "o.edgert", timeout_s=60))


def test_a_conversion_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(FaultError, match=r"more than 0.01 s"):
        run(rebuild(tmp_path / "s.tar", tmp_path / "w.npz", tmp_path / "o.edgert", timeout_s=0.01))


def test_a_conversion_that_never_stops_talking_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chatter = tmp_path / "python"
    chatter.write_text("#!/bin/sh\nexec yes\n")
    chatter.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(chatter))
    with pytest.raises(FaultError, match=r"wrote more than"):
        run(rebuild(tmp_path / "s.tar", tmp_path / "w.npz", tmp_path / "o.edgert", timeout_s=60))


def test_the_gate_lets_half_a_point_pass_and_no_more() -> None:
    gate(0.895, 0.9, 0.5)
    gate(1.0, 0.9, 0.0)
    with pytest.raises(EdgeRTError, match=r"more than 0.5 points worse"):
        gate(0.8949, 0.9, 0.5)
