"""Updates and plans."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgert.errors import CheckError, MessageError, SamplesError
from edgert.federated.plan import LocalTraining, Plan
from edgert.federated.update import Update, difference, moved, unpack_weights
from edgert.samples import pack_arrays
from edgert.values import Weights

_START: Weights = {"w": np.ones((2, 2), np.float32), "b": np.zeros(3, np.float32), "s": np.array(2, np.float32)}


def _plan(**change: Any) -> Plan:
    values: dict[str, Any] = {
        "job": "job-1", "model": "digits", "base": "sha256:" + "0" * 64, "participants": 3, "quorum": 2,
        "issued": datetime(2026, 1, 1, tzinfo=UTC), "expires": datetime(2026, 1, 2, tzinfo=UTC),
    }  # fmt: skip
    return Plan.model_validate(values | change)


# Updates


@given(seed=st.integers(0, 1000))
def test_moving_by_the_difference_leads_back_to_the_trained_weights(seed: int) -> None:
    random = np.random.default_rng(seed)
    trained = {name: np.asarray(random.standard_normal(value.shape), np.float32) for name, value in _START.items()}
    update = difference(trained, _START, 5)
    assert update.examples == 5
    for name, value in moved(_START, update.delta).items():
        np.testing.assert_allclose(value, trained[name], atol=1e-6)
        assert value.dtype == np.float32


@given(seed=st.integers(0, 1000))
def test_an_update_survives_its_journey(seed: int) -> None:
    random = np.random.default_rng(seed)
    delta = {name: np.asarray(random.standard_normal(value.shape), np.float32) for name, value in _START.items()}
    packed = Update(delta, 1).pack()
    assert packed == Update(dict(reversed(delta.items())), 1).pack()
    for name, value in unpack_weights(packed).items():
        np.testing.assert_array_equal(value, delta[name], strict=True)


def test_an_update_that_fits_is_accepted() -> None:
    Update({name: value * 2 for name, value in _START.items()}, 4).check_against(_START)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"other": np.zeros(1, np.float32)}, "other parameters"),
        ({"b": np.zeros(4, np.float32)}, r"'b' of the update has shape \(4,\)"),
        ({"b": np.zeros(3)}, "float64"),
        ({"b": np.array([0, np.nan, 0], np.float32)}, "not finite"),
        ({"b": np.array([0, np.inf, 0], np.float32)}, "not finite"),
    ],
)
def test_an_update_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckError, match=message):
        Update(_START | change, 4).check_against(_START)


def test_an_update_without_a_parameter_is_refused() -> None:
    with pytest.raises(CheckError, match="other parameters"):
        Update({"w": _START["w"]}, 4).check_against(_START)


def test_bytes_that_are_no_weights_are_refused() -> None:
    with pytest.raises(SamplesError):
        unpack_weights(b"PK\x03\x04 and nothing more")
    with pytest.raises(SamplesError, match="float32"):
        unpack_weights(pack_arrays({"w": np.zeros(2)}))


# Plans


def test_a_plan_survives_its_journey() -> None:
    plan = _plan(local=LocalTraining(epochs=3, learning_rate=0.1))
    assert Plan.decode(plan.encode()) == plan


def test_a_quorum_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(ValidationError, match="cannot be met by 3 participants"):
        _plan(quorum=4)


@pytest.mark.parametrize(
    "change",
    [
        {"rounds": 0},
        {"participants": 0, "quorum": 0},
        {"deadline_s": 0},
        {"job": "../etc"},
        {"base": "sha256:00"},
        {"aggregator": "no such thing"},
        {"format": 2},
        {"surprise": 1},
        {"issued": datetime(2026, 1, 1)},  # noqa: DTZ001 - the point is the missing zone
        {"local": {"epochs": 0}},
        {"local": {"learning_rate": 0}},
        {"local": {"momentum": 1}},
        {"local": {"seed": -1}},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        _plan(**change)


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b"\xff\xfe", b'{"format": 1}'])
def test_bytes_that_are_no_plan_are_refused(payload: bytes) -> None:
    with pytest.raises(MessageError, match="not a plan"):
        Plan.decode(payload)
