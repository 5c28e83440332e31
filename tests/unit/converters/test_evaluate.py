"""Accuracy against labels or against the float answers; tolerance of golden vectors."""

import numpy as np
import pytest
from numpy.typing import NDArray

from converters import evaluate, package
from converters.quantize.base import FLOAT32, Precision, Quantization, WeightRule
from edgert.accuracy import INCOMPARABLE
from edgert.errors import CheckError, SamplesError

_SCORES = {"scores": np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], np.float32)}


def test_with_labels_the_first_output_decides() -> None:
    assert evaluate.score("top1", _SCORES, _SCORES, np.array([1, 0, 0]), "scores") == pytest.approx(2 / 3)


def test_without_labels_the_worst_output_decides() -> None:
    reference = {"a": np.ones((2, 4)), "b": np.eye(2)}
    answers = {"a": np.ones((2, 4)), "b": np.eye(2)[::-1]}
    assert evaluate.score("cosine", answers, reference, None, "a") == pytest.approx(0.0)
    assert evaluate.score("cosine", reference, reference, None, "a") == pytest.approx(1.0)


def test_drop_is_in_points() -> None:
    assert evaluate.drop_points(0.92, 0.91) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("answers", "labels", "words"),
    [
        (_SCORES, np.array([0, 1, 2]), "0 to 2"),
        (_SCORES, np.array([-1, 1, 0]), "-1"),
        (_SCORES, np.array([0.0, 1.0, 0.0]), "float64"),
        ({"scores": np.ones((3, 1))}, np.array([0, 0, 0]), "single value"),
    ],
)
def test_labels_of_another_model_are_refused(
    answers: dict[str, NDArray[np.float32]], labels: NDArray[np.int64], words: str
) -> None:
    with pytest.raises(SamplesError, match=words):
        evaluate.check_labels(answers, labels, "scores")


def test_graphs_are_the_same_up_to_rounding() -> None:
    close = {"scores": _SCORES["scores"] + np.float32(1e-5)}
    assert evaluate.same(close, _SCORES)
    assert not evaluate.same({"scores": _SCORES["scores"] + np.float32(1e-2)}, _SCORES)
    assert not evaluate.same({"other": _SCORES["scores"]}, _SCORES)
    assert not evaluate.same({"scores": _SCORES["scores"].astype(np.float64)}, _SCORES)


def test_values_that_are_not_finite_must_be_so_on_both_sides() -> None:
    broken = {"scores": np.array([[np.nan, 0.9], [0.8, np.inf], [0.3, 0.7]], np.float32)}
    assert evaluate.same(broken, broken)
    assert not evaluate.same(broken, _SCORES)
    assert not evaluate.same(_SCORES, broken)


def test_an_answer_that_is_no_number_differs_without_measure() -> None:
    silent = {"scores": np.full((3, 2), np.nan, np.float32)}
    assert evaluate.differences(silent, _SCORES) == {"scores": INCOMPARABLE}
    assert evaluate.differences(_SCORES, silent) == {"scores": INCOMPARABLE}
    assert evaluate.differences(silent, silent) == {"scores": 0.0}
    precision = Precision("int8", {}, WeightRule(7), ("n",))
    with pytest.raises(CheckError, match="not finite"):
        package.tolerance("scores", precision, silent["scores"], _SCORES["scores"])


def test_float_tolerance_follows_the_scale_of_the_output() -> None:
    said = np.array([[10.0, -50.0]], np.float32)
    assert package.tolerance("y", FLOAT32, said, said) == pytest.approx(0.05)


def test_integer_tolerance_is_four_steps_or_what_quantization_moved() -> None:
    precision = Precision("int8", {"y": Quantization("uint8", 0.5, 10)}, WeightRule(7), ("n",))
    said = np.array([[10.0, -50.0]], np.float32)
    assert package.tolerance("y", precision, said, said) == pytest.approx(2.0)
    assert package.tolerance("y", precision, said, said + 3) == pytest.approx(3.0)
    assert package.tolerance("z", precision, said, said) == pytest.approx(0.5)
