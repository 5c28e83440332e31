"""What an artifact is put through on trial: load, golden vectors, samples, latency; and the verdict.

Nothing here starts a process or reads a request: see :mod:`edgert.trial`, which does both.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgert import accuracy, host, runtime
from edgert import golden as golden_file
from edgert import samples as samples_file
from edgert.backends.base import Session
from edgert.errors import CheckError
from edgert.values import Feeds, TensorSpec

__all__ = ["Examination", "Runner", "Stage", "Subject", "Verdict", "feeds_for_latency", "measure"]

Stage = Literal["load", "golden", "samples", "latency", "done"]

Runner = tuple[str, Session, Sequence[Feeds]]
"""A label, an open session, and what it is fed in turn."""

_FEEDS_FOR_LATENCY = 8
_SHORTEST_MEASUREMENT_S = 1e-3
_MOST_REPEATS = 20


class Verdict(BaseModel):
    """What became of one contender.

    Args:
        passed: every stage that was asked for went well.
        stage: the one that failed, or ``done``.
        reason: why it failed, one line.
        file: name of the artifact that was opened.
        backend: that opened it; `version` is that of the runtime behind it.
        load_ms: from the file to a session, the runtime's own start not counted.
        golden_error: largest absolute difference per output; the largest float where a value is not a number.
        latency_ms: median wall time of one run; None when it was not asked for.
        cpu_ms: median CPU time of one run, all threads.
        peak_rss_bytes: of the whole child, interpreter and runtime included.
        nodes: the partition report: how many nodes each provider runs.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    label: str
    passed: bool = False
    stage: Stage = "load"
    reason: str = ""
    file: str = ""
    backend: str = ""
    version: str = ""
    load_ms: float = 0.0
    golden_error: dict[str, float] = {}
    latency_ms: float | None = None
    cpu_ms: float | None = None
    peak_rss_bytes: int = 0
    nodes: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined: an open session, and which file and backend it is."""

    session: Session
    file: str
    backend: str
    version: str


class Examination:
    """Takes one contender through its stages.

    Args:
        label: of the contender.
        tell: called with each stage as it is entered, so that a crash in it can be named.
    """

    def __init__(self, label: str, tell: Callable[[Stage], None]) -> None:
        self.verdict = Verdict(label=label)
        self._tell = tell
        self._feeds: Sequence[Feeds] = ()

    @contextmanager
    def opened(self, open_session: Callable[[], Subject]) -> Iterator[Session]:
        """Stage `load`: a session for the length of the block."""
        self._enter("load")
        began = time.perf_counter()
        subject = open_session()
        load_ms = (time.perf_counter() - began) * 1e3
        try:
            self._learn(file=subject.file, backend=subject.backend, version=subject.version, load_ms=load_ms)
            self._learn(nodes=subject.session.nodes_by_provider())
            yield subject.session
        finally:
            subject.session.close()

    def golden(self, session: Session, arrays: Mapping[str, NDArray[Any]], tolerance: Mapping[str, float]) -> None:
        """Stage `golden`: the vectors of a golden file.

        Raises:
            CheckError: an output is further off than its tolerance; one without a tolerance is only measured.
        """
        self._enter("golden")
        feeds = list(golden_file.feeds(arrays, session.inputs))
        self._feeds = feeds[:_FEEDS_FOR_LATENCY]
        wanted = golden_file.outputs(arrays)
        if not feeds or not wanted:
            raise CheckError("the golden vectors are empty")
        errors = dict.fromkeys(wanted, 0.0)
        for i, feed in enumerate(feeds):
            answers = session.run(feed)
            for name, vectors in wanted.items():
                errors[name] = max(errors[name], _difference(name, answers.get(name), vectors[i]))
        self._learn(golden_error=errors)
        for name, allowed in tolerance.items():
            if name not in errors:
                raise CheckError(f"the golden vectors hold no output {name!r}")
            if errors[name] > allowed:
                raise CheckError(
                    f"output {name!r} is {errors[name]:.4g} off the golden vectors, {allowed:g} is allowed"
                )

    def samples(self, session: Session, path: Path, outputs: Path | None) -> None:
        """Stage `samples`: every sample of a file; the answers go to ``<label>.npz`` in `outputs`."""
        self._enter("samples")
        samples = samples_file.load(path)
        self._feeds = list(islice(samples.feeds(session.inputs), _FEEDS_FOR_LATENCY))
        answers = runtime.answer(session, samples).outputs
        if outputs is not None:
            samples_file.save(outputs / f"{self.verdict.label}.npz", answers)

    def latency(self, session: Session, rounds: int, deadline: float) -> None:
        """Stage `latency`: alone, on what the stages before were fed with."""
        self._enter("latency")
        runner = (self.verdict.label, session, self._feeds or [_synthetic(session.inputs)])
        wall_ms, cpu_ms = measure([runner], rounds, deadline)[self.verdict.label]
        self._learn(latency_ms=wall_ms, cpu_ms=cpu_ms)

    def concluded(self, reason: str = "") -> Verdict:
        """The verdict: passed, or failed in the stage reached for that reason."""
        self._learn(peak_rss_bytes=host.peak_rss_bytes(), reason=" ".join(reason.split()))
        if not reason:
            self._learn(passed=True, stage="done")
        return self.verdict

    def _enter(self, stage: Stage) -> None:
        self._learn(stage=stage)
        self._tell(stage)

    def _learn(self, **facts: object) -> None:
        self.verdict = self.verdict.model_copy(update=facts)


def feeds_for_latency(specs: Sequence[TensorSpec], samples: Path | None, golden: Path | None) -> Sequence[Feeds]:
    """A few feeds from the samples, else from the golden vectors, else made of ones."""
    if samples is not None:
        return list(islice(samples_file.load(samples).feeds(specs), _FEEDS_FOR_LATENCY))
    if golden is not None:
        return list(islice(golden_file.feeds(samples_file.load_arrays(golden), specs), _FEEDS_FOR_LATENCY))
    return [_synthetic(specs)]


def measure(runners: Sequence[Runner], rounds: int, deadline: float) -> dict[str, tuple[float, float]]:
    """Median wall and CPU milliseconds of one run, by label.

    The runners take turns, each turn in another order, so that what disturbs the machine disturbs all of them alike.
    A turn repeats short runs until it lasts about a millisecond. The first two turns warm up.

    Args:
        rounds: turns each subject gets.
        deadline: of `time.monotonic`; then the measurement ends with what it has, one run each at least.
    """
    repeats: dict[str, int] = {}
    walls: dict[str, list[float]] = {label: [] for label, _, _ in runners}
    cpus: dict[str, list[float]] = {label: [] for label, _, _ in runners}
    for turn in range(-2, rounds):
        if turn > -2 and time.monotonic() > deadline:
            break
        shift = turn % len(runners)
        for label, session, feeds in [*runners[shift:], *runners[:shift]]:
            if walls[label] and time.monotonic() > deadline:
                continue
            if turn == 0:
                walls[label].clear()
                cpus[label].clear()
            count = repeats.get(label, 1)
            began, cpu_began = time.perf_counter(), host.cpu_seconds()
            for i in range(count):
                session.run(feeds[i % len(feeds)])
            walls[label].append((time.perf_counter() - began) / count)
            cpus[label].append((host.cpu_seconds() - cpu_began) / count)
            if turn == -1:
                repeats[label] = max(1, min(_MOST_REPEATS, int(_SHORTEST_MEASUREMENT_S / max(walls[label][-1], 1e-9))))
    return {label: (statistics.median(walls[label]) * 1e3, statistics.median(cpus[label]) * 1e3) for label in walls}


def _difference(name: str, answer: NDArray[Any] | None, wanted: NDArray[Any]) -> float:
    if answer is None:
        raise CheckError(f"the model has no output {name!r}")
    if answer.shape != wanted.shape:
        raise CheckError(f"output {name!r} has shape {answer.shape}, the golden vectors have {wanted.shape}")
    return accuracy.difference(answer, wanted)


def _synthetic(specs: Sequence[TensorSpec]) -> Feeds:
    """A feed for a latency measurement without data: ones, free sizes 1."""
    return {spec.name: np.ones([1 if size is None else size for size in spec.shape], spec.dtype) for spec in specs}
