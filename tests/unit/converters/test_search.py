"""The choice of a precision, as a table."""

import sys

import pytest

from converters.report import Candidate
from converters.search import Budget, choose
from edgert.errors import CheckError

_FLOAT = Candidate(precision="float32", accuracy=0.9, drop_points=0.0, size_bytes=1000, cpu_ms=1.0)


def _int8(**changes: object) -> Candidate:
    values = {"precision": "int8", "accuracy": 0.9, "drop_points": 0.0, "size_bytes": 400, "cpu_ms": 0.5}
    return Candidate.model_validate({**values, **changes})


@pytest.mark.parametrize(
    ("int8", "chosen", "words"),
    [
        (_int8(),                                     "int8",    "0.40 x the size"),
        (_int8(drop_points=1.0),                      "int8",    "loses 1.00 points"),
        (_int8(drop_points=-0.4),                     "int8",    "loses 0.00 points"),
        (_int8(cpu_ms=3.0),                           "int8",    "3.00 x the CPU time"),
        (_int8(size_bytes=1200),                      "int8",    "1.20 x the size"),
        (_int8(size_bytes=1200, cpu_ms=0.97),         "float32", "neither smaller nor faster"),
        (_int8(drop_points=1.01),                     "float32", "loses 1.01 of 1 points"),
        (_int8(drop_points=None),                     "float32", "not measured"),
        (_int8(parity={"y": sys.float_info.max}),     "float32", "not finite"),
        (_int8(failure="no calibration samples"),     "float32", "no calibration samples"),
    ],
)  # fmt: skip
def test_auto_takes_int8_when_it_keeps_the_budget_and_pays(int8: Candidate, chosen: str, words: str) -> None:
    rows = choose((_FLOAT, int8), "auto", Budget(1.0))
    (winner,) = [row for row in rows if row.chosen]
    assert winner.precision == chosen
    assert words in winner.reason
    assert all(row.reason for row in rows)


def test_forced_int8_need_not_pay_but_must_keep_the_budget() -> None:
    rows = choose((_FLOAT, _int8(size_bytes=1200, cpu_ms=2.0)), "int8", Budget(1.0))
    assert rows[1].chosen
    with pytest.raises(CheckError, match="asked for but loses 5"):
        choose((_FLOAT, _int8(drop_points=5.0)), "int8", Budget(1.0))
    with pytest.raises(CheckError, match="broken"):
        choose((_FLOAT, _int8(failure="broken")), "int8", Budget(1.0))


def test_float32_alone_is_chosen_with_its_reason() -> None:
    assert choose((_FLOAT,), "float32", Budget(1.0))[0].reason == "asked for"


def test_an_artifact_that_the_box_cannot_hold_is_not_chosen() -> None:
    rows = choose((_FLOAT, _int8()), "auto", Budget(1.0, size_bytes=500))
    assert rows[1].chosen
    with pytest.raises(CheckError, match="1000 bytes, the profile allows 300"):
        choose((_FLOAT, _int8()), "auto", Budget(1.0, size_bytes=300))
    with pytest.raises(CheckError, match="allows 300"):
        choose((_FLOAT,), "float32", Budget(1.0, size_bytes=300))
