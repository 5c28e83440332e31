"""The one definition of accuracy."""

import numpy as np
import pytest

from edgert import accuracy
from edgert.accuracy import cosine, top1
from edgert.errors import SamplesError


def test_top1_counts_the_samples_whose_highest_score_is_at_their_label() -> None:
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert top1(scores, np.array([1, 0, 0, 0])) == 0.75


def test_top1_ignores_axes_of_size_one() -> None:
    scores = np.array([[0.1, 0.9], [0.8, 0.2]]).reshape(2, 1, 2, 1)
    assert top1(scores, np.array([1, 0])) == 1.0


@pytest.mark.parametrize(("scores", "labels"), [((3, 2), (2,)), ((0, 2), (0,)), ((3, 2), (3, 1))])
def test_top1_refuses_labels_that_do_not_fit(scores: tuple[int, ...], labels: tuple[int, ...]) -> None:
    with pytest.raises(SamplesError, match="do not fit"):
        top1(np.zeros(scores), np.zeros(labels, int))


def test_cosine_is_one_for_equal_directions_and_zero_for_right_angles() -> None:
    a = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert cosine(a, 3 * a) == pytest.approx(1.0)
    assert cosine(a, a[:, ::-1]) == pytest.approx(0.0)


def test_cosine_of_nothing_with_nothing_is_agreement() -> None:
    assert cosine(np.zeros((2, 3)), np.zeros((2, 3))) == 1.0
    assert cosine(np.zeros((1, 3)), np.ones((1, 3))) == 0.0


def test_a_difference_is_the_largest_gap_and_beyond_measure_where_one_is_not_finite() -> None:
    x = np.array([1.0, np.nan, np.inf], np.float32)
    assert accuracy.difference(x, x) == 0.0
    assert accuracy.difference(np.array([1, 5]), np.array([2.5, 5.0])) == 1.5
    for other in ([1.0, 0.0, np.inf], [1.0, np.nan, 0.0], [1.0, np.nan, -np.inf]):
        assert accuracy.difference(x, np.array(other)) == accuracy.INCOMPARABLE
    assert accuracy.difference(np.array(["a"]), np.array(["b"])) == accuracy.INCOMPARABLE


def test_answers_that_are_no_numbers_are_not_similar() -> None:
    assert cosine(np.array([[np.inf, 1.0]]), np.array([[1.0, 1.0]])) == 0.0
    assert cosine(np.array([[np.nan, 1.0]]), np.array([[1.0, 1.0]])) == 0.0
