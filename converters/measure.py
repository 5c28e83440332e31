"""Running candidates in child processes: does it load, does it compute the same, how good, how fast, how large."""

from collections.abc import Mapping
from pathlib import Path

from converters import evaluate
from converters.evaluate import Answers
from converters.quantize.base import FLOAT32
from converters.report import Candidate, Metric, SampleKind
from converters.work import Draft, Work
from edgert import samples as samples_file
from edgert import trial
from edgert.errors import CheckError
from edgert.samples import Samples
from edgert.trial import Contender, Verdict

__all__ = ["MEMORY_BYTES", "answers", "candidates", "measured_on", "metric_of"]

MEMORY_BYTES = 4 << 30
"""Resident memory one child may use."""

_ROUNDS = 60
_START_S = 60.0
_SAMPLE_S = 0.25


def answers(
    artifacts: Mapping[str, bytes], samples: Samples, folder: Path, *, rounds: int = 0
) -> dict[str, tuple[Verdict, Answers | None]]:
    """Run ONNX artifacts over samples, each in a child process of its own.

    Args:
        artifacts: bytes by label.
        folder: a scratch folder.
        rounds: of an interleaved latency measurement afterwards; 0 = none.

    Returns:
        By label, the verdict and one array per output, or None where it did not pass.
    """
    feeds = folder / "samples.npz"
    feeds.write_bytes(samples_file.pack_arrays(samples.inputs))
    contenders = []
    for label, data in artifacts.items():
        path = folder / f"{label}.onnx"
        path.write_bytes(data)
        contenders.append(Contender(label=label, path=path, format="onnx"))
    timeout_s = _START_S + _SAMPLE_S * len(samples)
    verdicts = trial.run(
        contenders, samples=feeds, outputs=folder, rounds=rounds, timeout_s=timeout_s, memory_bytes=MEMORY_BYTES
    )
    return {
        verdict.label: (verdict, samples_file.load_arrays(folder / f"{verdict.label}.npz") if verdict.passed else None)
        for verdict in verdicts
    }


def metric_of(work: Work) -> Metric:
    """Top-1 where the evaluation samples have labels, else cosine similarity."""
    return "top1" if work.evaluate is not None and work.evaluate.labels is not None else "cosine"


def measured_on(work: Work) -> tuple[Samples, SampleKind]:
    """The samples that candidates are judged on, and which they are."""
    if work.evaluate is not None:
        return work.evaluate, "evaluate"
    if work.calibrate is not None:
        return work.calibrate, "calibrate"
    return work.probe, work.probe_kind


def candidates(work: Work) -> tuple[Candidate, ...]:
    """Every draft of `work`, measured on the evaluation samples (else calibration samples or the probe).

    Raises:
        CheckError: the float artifact does not survive.
        SamplesError: the labels do not fit the model.
    """
    samples, _ = measured_on(work)
    usable = {draft.precision.name: draft.data for draft in work.drafts if draft.data}
    found = answers(usable, samples, work.folder, rounds=_ROUNDS)
    verdict, reference = found[FLOAT32.name]
    if reference is None:
        raise CheckError(f"the float artifact failed at stage {verdict.stage!r}: {verdict.reason}")
    metric, first = metric_of(work), work.outputs[0].name
    if metric == "top1" and samples.labels is not None:
        evaluate.check_labels(reference, samples.labels, first)
    plain = evaluate.score(metric, reference, reference, samples.labels, first)
    rows = []
    for draft in work.drafts:
        if not draft.data:
            rows.append(Candidate(precision=draft.precision.name, failure=draft.failure))
            continue
        verdict, said = found[draft.precision.name]
        if said is None:
            failure = f"it failed at stage {verdict.stage!r}: {verdict.reason}"
            rows.append(Candidate(precision=draft.precision.name, size_bytes=len(draft.data), failure=failure))
            continue
        accuracy = evaluate.score(metric, said, reference, samples.labels, first)
        rows.append(_row(draft, verdict, accuracy, plain, evaluate.differences(said, reference)))
    return tuple(rows)


def _row(draft: Draft, verdict: Verdict, accuracy: float, plain: float, parity: dict[str, float]) -> Candidate:
    return Candidate(
        precision=draft.precision.name,
        accuracy=accuracy,
        drop_points=evaluate.drop_points(plain, accuracy),
        size_bytes=len(draft.data),
        latency_ms=verdict.latency_ms,
        cpu_ms=verdict.cpu_ms,
        load_ms=verdict.load_ms,
        peak_rss_bytes=verdict.peak_rss_bytes,
        parity=parity,
    )
