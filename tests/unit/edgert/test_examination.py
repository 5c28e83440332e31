"""What an artifact is put through, stage by stage, with a real session."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgert import plugins
from edgert.backends.base import Session
from edgert.errors import CheckError, EdgeRTError
from edgert.examination import Examination, Stage, Subject, feeds_for_latency, measure
from tests.support import models

X = np.random.default_rng(0).random((9, 4), dtype=np.float32)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    path = models.write(models.mlp(), tmp_path / "m.onnx")
    opened = plugins.load("edgert.backends", "onnxruntime").open(path)
    yield opened
    opened.close()


def test_stages_are_told_as_they_are_entered(session: Session) -> None:
    told: list[Stage] = []
    examination = Examination("m", told.append)
    with examination.opened(lambda: Subject(session, "m.onnx", "onnxruntime", "1")) as opened:
        examination.latency(opened, 2, time.monotonic() + 5)
    verdict = examination.concluded()
    assert told == ["load", "latency"]
    assert (verdict.passed, verdict.stage, verdict.file, verdict.backend) == (True, "done", "m.onnx", "onnxruntime")


def test_a_failure_stays_in_its_stage(session: Session) -> None:
    examination = Examination("m", lambda stage: None)
    with pytest.raises(CheckError):
        examination.golden(session, {"input.x": X[:1, None]}, {})
    verdict = examination.concluded("two\nlines")
    assert (verdict.passed, verdict.stage, verdict.reason) == (False, "golden", "two lines")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"output.scores": np.zeros((1, 1, 3), np.float32)}, "no input 'x'"),
        ({"input.x": X[:1, None]}, "empty"),
        ({"input.x": X[:2, None], "output.scores": np.zeros((1, 1, 3), np.float32)}, "differ in number"),
        ({"input.x": X[:1, None], "output.scores": np.zeros((1, 1, 4), np.float32)}, "shape"),
        ({"input.x": X[:1, None], "output.other": np.zeros((1, 1, 3), np.float32)}, "no output 'other'"),
        ({"input.x": X[:1], "output.scores": np.zeros((1, 1, 3), np.float32)}, "input 'x'"),
        ({"input.x": X[:1, None], "output.scores": np.full((1, 1, 3), np.nan, np.float32)}, "off the golden"),
    ],
)
def test_golden_vectors_that_do_not_fit_are_refused(
    session: Session, arrays: dict[str, np.ndarray], words: str
) -> None:
    with pytest.raises(EdgeRTError, match=words):
        Examination("m", lambda stage: None).golden(session, arrays, {"scores": 1e-4})


def test_a_tolerance_for_an_output_that_is_not_there_is_refused(session: Session) -> None:
    scores = models.mlp_answer(X[:1])[None]
    with pytest.raises(CheckError, match="no output 'other'"):
        Examination("m", lambda stage: None).golden(
            session, {"input.x": X[:1, None], "output.scores": scores}, {"other": 1.0}
        )


def test_not_a_number_agrees_with_itself_only(session: Session) -> None:
    x = np.full((1, 1, 4), np.nan, np.float32)
    arrays = {"input.x": x, "output.scores": session.run({"x": x[0]})["scores"][None]}
    examination = Examination("m", lambda stage: None)
    examination.golden(session, arrays, {"scores": 0.0})
    assert examination.concluded().golden_error == {"scores": 0.0}


def test_a_measurement_ends_at_its_deadline_with_what_it_has(session: Session) -> None:
    feeds = feeds_for_latency(session.inputs, None, None)
    wall_ms, cpu_ms = measure([("m", session, feeds)], 10**9, time.monotonic() + 0.1)["m"]
    assert 0 < wall_ms < 50
    assert 0 < cpu_ms < 50
    assert set(measure([("a", session, feeds), ("b", session, feeds)], 3, time.monotonic())) == {"a", "b"}
