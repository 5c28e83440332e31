"""Which precision goes into the bundle, and why: decided on measurements, never on assumptions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from converters.recipe import Wanted
from converters.report import Candidate
from edgert.accuracy import INCOMPARABLE
from edgert.errors import CheckError

__all__ = ["Budget", "choose", "denied"]

_FASTER = 0.95
"""Below this ratio of CPU time a candidate counts as faster; closer is noise."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a candidate must keep.

    Args:
        drop_points: how many points of accuracy it may lose.
        size_bytes: how large its artifact may be; None = no limit.
    """

    drop_points: float
    size_bytes: int | None = None


def choose(candidates: Sequence[Candidate], wanted: Wanted, budget: Budget) -> tuple[Candidate, ...]:
    """The candidates, one of them chosen, each with its reason.

    Args:
        candidates: ``float32`` first; then at most one quantized.
        wanted: a precision that is forced, or ``auto``.

    Raises:
        CheckError: the forced precision cannot be used or breaks the budget, or float32 is left and too large.
    """
    plain = candidates[0]
    if len(candidates) == 1:
        _check_size(plain, budget)
        return (plain.model_copy(update={"chosen": True, "reason": _alone(wanted)}),)
    quantized = candidates[1]
    forced = wanted == quantized.precision
    objection = _objection(quantized, plain, budget, forced=forced)
    if forced and objection:
        raise denied(quantized.precision, objection)
    if objection:
        _check_size(plain, budget)
        return (
            plain.model_copy(update={"chosen": True, "reason": f"{quantized.precision} {objection}"}),
            quantized.model_copy(update={"reason": objection}),
        )
    return (
        plain.model_copy(update={"reason": f"{quantized.precision} keeps the accuracy budget"}),
        quantized.model_copy(update={"chosen": True, "reason": _merits(quantized, plain)}),
    )


def denied(precision: str, objection: str) -> CheckError:
    """The error when a precision was asked for and cannot be had."""
    return CheckError(
        f"{precision} was asked for but {objection}",
        hint="allow more with --max-drop, give better calibration samples, or let --precision auto decide",
    )


_Test = Callable[[Candidate, Candidate, Budget], bool]
_Words = Callable[[Candidate, Candidate, Budget], str]

# What speaks against the quantized candidate `q` beside the float one `f` with budget `b`; the first that holds counts.
# The last row is waived when that precision is asked for.
_OBJECTIONS: tuple[tuple[_Test, _Words], ...] = (
    (lambda q, f, b: bool(q.failure),             lambda q, f, b: f"cannot be used: {q.failure}"),
    (lambda q, f, b: _too_large(q, b),            lambda q, f, b: f"has {q.size_bytes} bytes, allowed {b.size_bytes}"),
    (lambda q, f, b: _not_finite(q),              lambda q, f, b: "answers what is not finite where float is"),
    (lambda q, f, b: q.drop_points is None,       lambda q, f, b: "was not measured"),
    (lambda q, f, b: _drop(q) > b.drop_points,    lambda q, f, b: f"loses {_drop(q):.2f} of {b.drop_points:g} points"),
    (lambda q, f, b: not _pays(q, f),             lambda q, f, b: "is neither smaller nor faster"),
)  # fmt: skip


def _objection(quantized: Candidate, plain: Candidate, budget: Budget, *, forced: bool) -> str:
    for holds, words in _OBJECTIONS[:-1] if forced else _OBJECTIONS:
        if holds(quantized, plain, budget):
            return words(quantized, plain, budget)
    return ""


def _check_size(plain: Candidate, budget: Budget) -> None:
    if _too_large(plain, budget):
        raise CheckError(
            f"the float32 artifact has {plain.size_bytes} bytes, the profile allows {budget.size_bytes}",
            hint="choose a larger box, or give calibration samples so that int8 can be tried",
        )


def _too_large(candidate: Candidate, budget: Budget) -> bool:
    return budget.size_bytes is not None and (candidate.size_bytes or 0) > budget.size_bytes


def _not_finite(candidate: Candidate) -> bool:
    return INCOMPARABLE in candidate.parity.values()


def _drop(candidate: Candidate) -> float:
    return candidate.drop_points or 0.0


def _pays(a: Candidate, b: Candidate) -> bool:
    smaller = a.size_bytes is not None and b.size_bytes is not None and a.size_bytes < b.size_bytes
    faster = a.cpu_ms is not None and b.cpu_ms is not None and a.cpu_ms < _FASTER * b.cpu_ms
    return smaller or faster


def _alone(wanted: Wanted) -> str:
    return "asked for" if wanted == "float32" else "the only candidate"


def _merits(quantized: Candidate, plain: Candidate) -> str:
    words = [f"loses {max(_drop(quantized), 0.0):.2f} points"]
    if quantized.size_bytes and plain.size_bytes:
        words.append(f"{quantized.size_bytes / plain.size_bytes:.2f} x the size")
    if quantized.cpu_ms and plain.cpu_ms:
        words.append(f"{quantized.cpu_ms / plain.cpu_ms:.2f} x the CPU time")
    return ", ".join(words)
