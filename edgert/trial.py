"""Run artifacts in child processes: load, golden vectors, samples, latency, memory - and survive what they do.

The parent never imports a runtime and never raises for what an artifact does: a crash, a hang or a memory blow-up is
that contender's verdict. The child is ``python -m edgert.trial``: one request (JSON) on standard input, one JSON object
per line on standard output, the answer last. What a runtime prints itself goes to standard error: it cannot pass for an
answer.
"""

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from edgert import plugins, runtime, watch
from edgert import samples as samples_file
from edgert.backends.base import Availability, SessionOptions
from edgert.bundle import Bundle
from edgert.errors import BackendError, CheckError, EdgeRTError, UsageError
from edgert.examination import Examination, Runner, Stage, Subject, Verdict, feeds_for_latency, measure
from edgert.store import Store
from edgert.values import is_name

__all__ = ["Contender", "Stage", "Verdict", "infer", "probe", "run", "run_bundle"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Contender(_Value):
    """An artifact file on trial.

    Args:
        label: names the verdict and the file of outputs; a name as `edgert.values.is_name` has it.
        format: of the artifact, chooses the backend.
    """

    label: str
    path: Path
    format: str
    threads: int = 1


class _Request(_Value):
    """What the child is to do; `timeout_s` is its own deadline too, should the parent die."""

    kind: Literal["check", "latency", "bundle", "probe"]
    timeout_s: float
    contenders: tuple[Contender, ...] = ()
    golden: Path | None = None
    tolerance: dict[str, float] = {}
    samples: Path | None = None
    outputs: Path | None = None
    rounds: int = 0
    store: Path | None = None
    bundle: str = ""
    file: Path | None = None
    backend: str = ""


class _Line(_Value):
    """One line of the child: the stage it enters, or its answer."""

    stage: Stage | None = None
    verdict: Verdict | None = None
    medians: dict[str, tuple[float, float]] | None = None
    availability: Availability | None = None


def run(
    contenders: Sequence[Contender],
    *,
    golden: Path | None = None,
    tolerance: Mapping[str, float] | None = None,
    samples: Path | None = None,
    outputs: Path | None = None,
    rounds: int = 0,
    timeout_s: float = 60,
    memory_bytes: int | None = None,
) -> list[Verdict]:
    """Try each contender in a child process of its own, then measure the survivors interleaved in one more.

    Args:
        golden: ``.npz`` of golden vectors, see `edgert.manifest.Golden`.
        tolerance: per output; an output without one is measured, not judged.
        samples: ``.npz`` of samples that every contender is run over.
        outputs: folder for ``<label>.npz``: one array per model output, first axis = samples.
        rounds: of the latency measurement, 0 = none; fewer where one run takes long.
        timeout_s: for each child.
        memory_bytes: resident memory each child may use.

    Returns:
        One verdict per contender, in their order.

    Raises:
        UsageError: labels that are no names, or twice the same.
        TrialError: this machine cannot start a child process at all.
    """
    labels = [contender.label for contender in contenders]
    if len(set(labels)) != len(labels) or not all(map(is_name, labels)):
        raise UsageError(f"contenders need distinct names as labels, not {labels}")
    request = _Request(
        kind="check", timeout_s=timeout_s, golden=golden, tolerance=dict(tolerance or {}), samples=samples,
        outputs=outputs, rounds=rounds if len(contenders) == 1 else 0,
    )  # fmt: skip
    verdicts = [
        _verdict(request.model_copy(update={"contenders": (contender,)}), contender.label, memory_bytes)
        for contender in contenders
    ]
    if rounds == 0 or len(contenders) == 1:
        return verdicts
    survivors = tuple(c for c, verdict in zip(contenders, verdicts, strict=True) if verdict.passed)
    latency = request.model_copy(update={"kind": "latency", "rounds": rounds, "contenders": survivors})
    return _with_latency(verdicts, latency, memory_bytes)


def run_bundle(
    bundle_blobs: Store, bundle: Bundle, *, rounds: int = 20, timeout_s: float = 60, memory_bytes: int | None = None
) -> Verdict:
    """Try a staged bundle as serving will open it: its best artifact, its golden vectors, its latency.

    Args:
        bundle_blobs: the store that holds the bundle's blobs.

    Raises:
        TrialError: this machine cannot start a child process at all.
    """
    request = _Request(
        kind="bundle", timeout_s=timeout_s, rounds=rounds, store=bundle_blobs.root.absolute(), bundle=bundle.digest
    )
    return _verdict(request, bundle.manifest.model, memory_bytes)


def infer(
    file: Path,
    samples: Path,
    outputs: Path,
    *,
    rounds: int = 20,
    timeout_s: float = 600,
    memory_bytes: int | None = None,
) -> Verdict:
    """Run a bundle file over samples; the answers are in ``outputs/bundle.npz``.

    Raises:
        TrialError: this machine cannot start a child process at all.
    """
    request = _Request(kind="bundle", timeout_s=timeout_s, file=file, samples=samples, outputs=outputs, rounds=rounds)
    return _verdict(request, "bundle", memory_bytes)


def probe(backend: str, timeout_s: float = 20) -> Availability:
    """What the backend's own probe says, asked in a child process: some broken installations crash.

    Raises:
        UsageError: there is no such backend.
    """
    if backend not in plugins.names("edgert.backends"):
        raise UsageError(f"there is no backend {backend!r}", hint=", ".join(plugins.names("edgert.backends")))
    ended = _child(_Request(kind="probe", timeout_s=timeout_s, backend=backend), None)
    if ended.answer.availability is None:
        return Availability(False, "", f"the probe {ended.trouble}")
    return ended.answer.availability


def _verdict(request: _Request, label: str, memory_bytes: int | None) -> Verdict:
    ended = _child(request, memory_bytes)
    if ended.answer.verdict is not None:
        return ended.answer.verdict.model_copy(update={"label": label})
    return Verdict(
        label=label, stage=ended.stage, reason=f"the runtime {ended.trouble}", peak_rss_bytes=ended.peak_rss_bytes
    )


def _with_latency(verdicts: list[Verdict], request: _Request, memory_bytes: int | None) -> list[Verdict]:
    """The verdicts with their medians; when the common child dies, each survivor is measured alone to find the one."""
    if not request.contenders:
        return verdicts
    limit = None if memory_bytes is None else memory_bytes * len(request.contenders)
    medians = _child(request, limit).answer.medians or {}
    found: dict[str, dict[str, Any]] = {}
    for contender in request.contenders:
        trouble = ""
        if contender.label not in medians:
            ended = _child(request.model_copy(update={"contenders": (contender,)}), memory_bytes)
            medians |= ended.answer.medians or {}
            trouble = ended.trouble
        if contender.label in medians:
            wall_ms, cpu_ms = medians[contender.label]
            found[contender.label] = {"latency_ms": wall_ms, "cpu_ms": cpu_ms}
        else:
            found[contender.label] = {"passed": False, "stage": "latency", "reason": f"the runtime {trouble}"}
    return [verdict.model_copy(update=found.get(verdict.label, {})) for verdict in verdicts]


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a child ended; `trouble` is empty when it gave its answer and left in good order."""

    answer: _Line
    stage: Stage
    trouble: str
    peak_rss_bytes: int


def _child(request: _Request, memory_bytes: int | None) -> _Ended:
    ended = watch.converse(
        [sys.executable, "-P", "-m", "edgert.trial"],
        request.model_dump_json().encode(),
        timeout_s=request.timeout_s,
        memory_bytes=memory_bytes,
    )
    stage: Stage = "load"
    last = _Line()
    for last in _lines(ended.said):
        stage = last.stage or stage
    if ended.trouble or last.stage is not None or last == _Line():
        trouble = ended.trouble or "ended without an answer"
        return _Ended(_Line(), stage, trouble, ended.peak_rss_bytes)
    return _Ended(last, stage, "", ended.peak_rss_bytes)


def _lines(said: bytes) -> Iterator[_Line]:
    for raw in said.splitlines():
        try:
            yield _Line.model_validate_json(raw)
        except ValidationError:
            continue  # not ours: printed before the child took its standard output away


# The child: ``python -m edgert.trial``

Tell = Callable[[Stage], None]


@dataclass(frozen=True, slots=True)
class _Case:
    """What is examined: the format that is tried first, how it is opened, and its golden vectors with tolerances."""

    format: str
    open: Callable[[], Subject]
    golden: Callable[[], tuple[dict[str, NDArray[Any]], Mapping[str, float]]] | None


def _of_contender(request: _Request) -> _Case:
    (contender,) = request.contenders
    golden = request.golden
    vectors = None if golden is None else lambda: (samples_file.load_arrays(golden), request.tolerance)
    return _Case(contender.format, lambda: _open(contender), vectors)


def _of_bundle(request: _Request) -> _Case:
    bundle = Bundle.load(Store(request.store), request.bundle) if request.store else Bundle.open(_given(request.file))

    def open_best() -> Subject:
        opened = runtime.open_bundle(bundle)
        return Subject(opened.session, opened.artifact.file, opened.backend, opened.version)

    def vectors() -> tuple[dict[str, NDArray[Any]], Mapping[str, float]]:
        packed = io.BytesIO(bundle.read(bundle.require("golden")))
        return samples_file.load_arrays(packed), _full_tolerance(bundle)

    return _Case(bundle.require("infer").format, open_best, vectors if request.samples is None else None)


def _examine(request: _Request, tell: Tell, deadline: float) -> _Line:
    label = request.contenders[0].label if request.contenders else "bundle"
    examination = Examination(label, tell)
    try:
        case = _of_contender(request) if request.contenders else _of_bundle(request)
        with suppress(BackendError):  # told again by `open`, unless another artifact does
            runtime.backend_for(case.format)  # the runtime's own start is no part of the artifact's load time
        with examination.opened(case.open) as session:
            if case.golden is not None:
                examination.golden(session, *case.golden())
            if request.samples is not None:
                examination.samples(session, request.samples, request.outputs)
            if request.rounds:
                examination.latency(session, request.rounds, deadline)
    except Exception as e:  # the edge of the process: whatever an artifact does is its verdict
        return _Line(verdict=examination.concluded(_why(e)))
    return _Line(verdict=examination.concluded())


def _full_tolerance(bundle: Bundle) -> Mapping[str, float]:
    """The tolerance per output; an output without one would not be judged."""
    tolerance = bundle.manifest.golden.tolerance
    untold = {tensor.name for tensor in bundle.manifest.outputs} - set(tolerance)
    if untold:
        raise CheckError(f"the manifest gives no tolerance for {sorted(untold)}")
    return tolerance


def _given(file: Path | None) -> Path:
    if file is None:
        raise UsageError("the request names no bundle")
    return file


def _latency(request: _Request, tell: Tell, deadline: float) -> _Line:
    tell("latency")
    runners: list[Runner] = []
    for contender in request.contenders:
        session = _open(contender).session
        runners.append((contender.label, session, feeds_for_latency(session.inputs, request.samples, request.golden)))
    return _Line(medians=measure(runners, request.rounds, deadline))


def _probe(request: _Request, tell: Tell, deadline: float) -> _Line:
    del tell, deadline
    return _Line(availability=runtime.available(request.backend))


def _open(contender: Contender) -> Subject:
    name, backend = runtime.backend_for(contender.format)
    session = backend.open(contender.path, SessionOptions(threads=contender.threads))
    return Subject(session, contender.path.name, name, runtime.available(name).version)


def _why(error: Exception) -> str:
    return error.message if isinstance(error, EdgeRTError) else f"{type(error).__name__}: {error}"


_ANSWERS: dict[str, Callable[[_Request, Tell, float], _Line]] = {
    "check": _examine,
    "bundle": _examine,
    "latency": _latency,
    "probe": _probe,
}


def _main() -> int:
    began = time.monotonic()
    answers = watch.private_stdout()
    request = _Request.model_validate_json(sys.stdin.buffer.read())
    signal.alarm(int(request.timeout_s) + 5)  # a child whose parent was killed ends by itself
    _be_first_to_die()

    def say(line: _Line) -> None:
        answers.write(line.model_dump_json(exclude_none=True) + "\n")
        answers.flush()

    def tell(stage: Stage) -> None:
        say(_Line(stage=stage))

    say(_ANSWERS[request.kind](request, tell, began + 0.7 * request.timeout_s))
    return 0


def _be_first_to_die() -> None:
    """Let the kernel, out of memory, choose this process and not the one that serves."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    except OSError:
        return  # a kernel without /proc: then the parent's watch is all there is


if __name__ == "__main__":
    status = _main()
    sys.stderr.flush()
    os._exit(status)  # no tear-down: a runtime that crashes there would spoil an answer already given
