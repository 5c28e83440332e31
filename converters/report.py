"""What was measured on the way to a bundle. It names the bundle by digest and is no part of it."""

from collections.abc import Sequence
from importlib import metadata
from typing import Literal

from pydantic import BaseModel, ConfigDict

from edgert import __version__, host
from edgert.manifest import Digest

__all__ = ["Candidate", "Machine", "Metric", "Report", "SampleKind", "machine", "versions"]

Metric = Literal["top1", "cosine"]
SampleKind = Literal["evaluate", "calibrate", "random"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Candidate(_Value):
    """One precision, and what it is worth.

    Args:
        accuracy: top-1 as a fraction, or mean cosine similarity to the float answers; None when it never ran.
        drop_points: what it loses against float32, in points (hundredths).
        size_bytes: of the artifact.
        latency_ms, cpu_ms: median wall and CPU time of one run of one sample on one thread.
        load_ms: from file to session.
        peak_rss_bytes: of the child process that ran it.
        parity: largest absolute difference to the float answers, by output.
        failure: why it cannot be used at all.
        chosen: whether it is in the bundle.
        reason: why, or why not.
    """

    precision: str
    accuracy: float | None = None
    drop_points: float | None = None
    size_bytes: int | None = None
    latency_ms: float | None = None
    cpu_ms: float | None = None
    load_ms: float | None = None
    peak_rss_bytes: int | None = None
    parity: dict[str, float] = {}
    failure: str = ""
    chosen: bool = False
    reason: str = ""


class Machine(_Value):
    """Where it was measured."""

    arch: str
    cores: int
    memory_bytes: int
    features: tuple[str, ...]


class Report(_Value):
    """The measurements behind one bundle.

    Args:
        bundle: its digest.
        metric: what `accuracy` means.
        measured_on: which samples: ``evaluate``, ``calibrate``, or ``random`` inputs.
        samples: how many.
        candidates: float32 first.
        notes: what could not be done, one line each.
    """

    format: Literal[1] = 1
    bundle: Digest
    model: str
    profile: str
    metric: Metric
    measured_on: SampleKind
    samples: int
    budget_points: float
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()
    machine: Machine
    versions: dict[str, str]

    def chosen(self) -> Candidate:
        """The candidate that is in the bundle."""
        return next(candidate for candidate in self.candidates if candidate.chosen)

    def plain(self) -> Candidate:
        """The float32 candidate."""
        return self.candidates[0]


_SPEED_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimd", "asimddp", "i8mm")


def machine() -> Machine:
    """The machine that measures: what matters for speed."""
    found = host.detect()
    features = tuple(name for name in _SPEED_FEATURES if name in found.features)
    return Machine(arch=found.arch, cores=found.cores, memory_bytes=found.memory_bytes, features=features)


def versions(distributions: Sequence[str] = ("numpy", "onnx", "onnxruntime", "onnxslim")) -> dict[str, str]:
    """Versions of everything that shapes the bytes of a bundle."""
    return {"edgert": __version__} | {name: metadata.version(name) for name in distributions}
