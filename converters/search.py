"""Which precision goes into the bundle, and why: decided on measurements, never on assumptions."""

from collections.abc import Callable, Sequence

from converters.recipe import Wanted
from converters.report import Candidate
from edgert.errors import CheckError

__all__ = ["choose"]

_FASTER = 0.95
"""Below this ratio of CPU time a candidate counts as faster; closer is noise."""


def choose(candidates: Sequence[Candidate], wanted: Wanted, budget_points: float) -> tuple[Candidate, ...]:
    """The candidates, one of them chosen, each with its reason.

    Args:
        candidates: ``float32`` first; then at most one quantized.
        wanted: a precision that is forced, or ``auto``.
        budget_points: how many points the quantized one may lose.

    Raises:
        CheckError: the forced precision cannot be used, or loses more than the budget.
    """
    plain = candidates[0]
    if len(candidates) == 1:
        return (plain.model_copy(update={"chosen": True, "reason": _alone(wanted)}),)
    quantized = candidates[1]
    objection = _objection(quantized, plain, budget_points, forced=wanted == quantized.precision)
    if wanted == quantized.precision and objection:
        raise CheckError(
            f"{quantized.precision} was asked for but {objection}",
            hint="allow more with --max-drop, give better calibration samples, or let --precision auto decide",
        )
    if objection:
        return (
            plain.model_copy(update={"chosen": True, "reason": f"{quantized.precision} {objection}"}),
            quantized.model_copy(update={"reason": objection}),
        )
    return (
        plain.model_copy(update={"reason": f"{quantized.precision} keeps the accuracy budget"}),
        quantized.model_copy(update={"chosen": True, "reason": _merits(quantized, plain)}),
    )


_Test = Callable[[Candidate, Candidate, float], bool]
_Words = Callable[[Candidate, Candidate, float], str]

# What speaks against the quantized candidate `q` beside the float one `f` with budget `b`; the first that holds counts.
_OBJECTIONS: tuple[tuple[_Test, _Words], ...] = (
    (lambda q, f, b: bool(q.failure),             lambda q, f, b: f"cannot be used: {q.failure}"),
    (lambda q, f, b: q.drop_points is None,       lambda q, f, b: "was not measured"),
    (lambda q, f, b: (q.drop_points or 0.0) > b,  lambda q, f, b: f"loses {q.drop_points:.2f} points of {b:g} allowed"),
)  # fmt: skip


def _objection(quantized: Candidate, plain: Candidate, budget_points: float, *, forced: bool) -> str:
    for holds, words in _OBJECTIONS:
        if holds(quantized, plain, budget_points):
            return words(quantized, plain, budget_points)
    if not forced and not _smaller(quantized, plain) and not _faster(quantized, plain):
        return "is neither smaller nor faster"
    return ""


def _smaller(a: Candidate, b: Candidate) -> bool:
    return a.size_bytes is not None and b.size_bytes is not None and a.size_bytes < b.size_bytes


def _faster(a: Candidate, b: Candidate) -> bool:
    return a.cpu_ms is not None and b.cpu_ms is not None and a.cpu_ms < _FASTER * b.cpu_ms


def _alone(wanted: Wanted) -> str:
    return "asked for" if wanted == "float32" else "the only candidate"


def _merits(quantized: Candidate, plain: Candidate) -> str:
    words = [f"loses {max(quantized.drop_points or 0.0, 0.0):.2f} points"]
    if quantized.size_bytes and plain.size_bytes:
        words.append(f"{quantized.size_bytes / plain.size_bytes:.2f} x the size")
    if quantized.cpu_ms and plain.cpu_ms:
        words.append(f"{quantized.cpu_ms / plain.cpu_ms:.2f} x the CPU time")
    return ", ".join(words)
