"""The journey of one model, stage by stage: import, prove, quantize, measure, choose, package, write.

:func:`convert` is the whole of it; the command line and the tests call nothing else.
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from converters import calibrate, data, evaluate, graph, isolate, measure, package, report, search, source
from converters.emit.base import Emitter
from converters.quantize.base import FLOAT32, Precision, Scheme
from converters.recipe import Lock, Recipe
from converters.report import Candidate, Report, SampleKind
from converters.training import build as training_build
from converters.work import Draft, Work
from edgert import bundle, plugins
from edgert.errors import CheckError, ModelError, UsageError
from edgert.files import replacing
from edgert.profiles import Profile
from edgert.samples import Samples
from edgert.values import digest, digest_file

__all__ = ["Outputs", "Progress", "Request", "Result", "convert"]

Progress = Callable[[str, int, int], None]
"""Told the name of each stage as it begins, its number from 0, and how many there are."""

_STAGES = ("import", "prove", "quantize", "measure", "package")
_PROBE = 16
_MADE_UP = 4
_CALIBRATION_S = 60.0
_CALIBRATION_SAMPLE_S = 0.25


@dataclass(frozen=True, slots=True)
class Request:
    """What to convert.

    Args:
        recipe: how; its digests of samples are filled in from the samples below.
        profile: of that name.
        model: the file with the trained graph.
        calibrate, evaluate: samples, or None.
        weights: an ``.npz`` file whose arrays replace initializers of those names, or None.
    """

    recipe: Recipe
    profile: Profile
    model: Path
    calibrate: Samples | None = None
    evaluate: Samples | None = None
    weights: Path | None = None


@dataclass(frozen=True, slots=True)
class Outputs:
    """The three files of one conversion; all are written, or none.

    Args:
        bundle: its name ends with ``.edgert``; the others lie beside it.
    """

    bundle: Path

    @property
    def source(self) -> Path:
        """``m.source.tar`` beside ``m.edgert``."""
        return self.bundle.with_name(self.bundle.name.removesuffix(bundle.SUFFIX) + source.SUFFIX)

    @property
    def report(self) -> Path:
        """``m.report.json`` beside ``m.edgert``."""
        return self.bundle.with_name(self.bundle.name.removesuffix(bundle.SUFFIX) + ".report.json")

    def check(self) -> None:
        """Refuse names that cannot be written, before any work is done.

        Raises:
            UsageError: another suffix, or a folder is in the way.
        """
        if not self.bundle.name.endswith(bundle.SUFFIX) or self.bundle.name == bundle.SUFFIX:
            raise UsageError(f"the output {self.bundle} must end with {bundle.SUFFIX}", hint="for example -o m.edgert")
        for path in (self.bundle, self.source, self.report):
            if path.is_dir():
                raise UsageError(f"{path} is a folder", hint="choose another output name")


@dataclass(frozen=True, slots=True)
class Result:
    """What a conversion has made.

    Args:
        digest: of the bundle.
        source_digest: of the source file.
        report: what was measured.
    """

    outputs: Outputs
    digest: str
    source_digest: str
    report: Report


def convert(request: Request, outputs: Outputs, *, progress: Progress | None = None) -> Result:
    """Turn a trained graph into a bundle, a source and a report.

    Raises:
        UsageError: the request contradicts itself.
        ModelError: the model cannot be used.
        SamplesError: samples or weights cannot be used with the model.
        CheckError: a forced precision, or the training graph, fails its check; nothing was written.
        StoreError: the disk is full or read-only; nothing was written.
    """
    say = progress or (lambda text, done, total: None)
    outputs.check()
    if request.recipe.precision == "int8" and request.calibrate is None:
        raise UsageError("int8 needs calibration samples", hint="give --calibrate samples.npz")
    with tempfile.TemporaryDirectory(prefix="edgert-convert-") as scratch:
        say(_STAGES[0], 0, len(_STAGES))
        work = _imported(request, Path(scratch))
        say(_STAGES[1], 1, len(_STAGES))
        work = _proven(work, request.model)
        say(_STAGES[2], 2, len(_STAGES))
        work = _quantized(work)
        say(_STAGES[3], 3, len(_STAGES))
        budget = search.Budget(work.recipe.max_drop_points, work.profile.limits.model_bytes)
        candidates = search.choose(measure.candidates(work), work.recipe.precision, budget)
        say(_STAGES[4], 4, len(_STAGES))
        return _written(work, candidates, request, outputs)


def _imported(request: Request, folder: Path) -> Work:
    prepared = isolate.prepare(request.model, folder, weights=request.weights)
    inputs, outputs = graph.inputs(prepared.imported), graph.outputs(prepared.imported)
    calibration = None if request.calibrate is None else data.whole(request.calibrate, inputs)
    evaluation = None if request.evaluate is None else data.whole(request.evaluate, inputs)
    kind: SampleKind = "random"
    probe = data.made_up(inputs, _MADE_UP)
    if calibration is not None:
        kind, probe = "calibrate", calibration
    elif evaluation is not None:
        kind, probe = "evaluate", evaluation
    files = {
        name: data.pack(samples, inputs)
        for name, samples in (("calibrate", request.calibrate), ("evaluate", request.evaluate))
        if samples is not None
    }
    digests = {name: digest(files[name]) if name in files else None for name in ("calibrate", "evaluate")}
    return Work(
        recipe=request.recipe.model_copy(update=digests),
        profile=request.profile,
        folder=folder,
        imported=prepared.imported,
        cleaned=prepared.cleaned,
        inputs=inputs,
        outputs=outputs,
        probe=probe.take(slice(0, _PROBE)),
        probe_kind=kind,
        calibrate=calibration,
        evaluate=evaluation,
        files=files,
        notes=prepared.notes,
    )


def _proven(work: Work, path: Path) -> Work:
    """The work with its float artifact, proven to run and to compute what the imported graph computes."""
    emitter = _emitter()
    artifacts = {
        "imported": graph.serialize(work.imported),
        FLOAT32.name: emitter.emit(work.cleaned, FLOAT32, work.profile),
    }
    found = measure.answers(artifacts, work.probe, work.folder)
    verdict, want = found["imported"]
    if want is None:
        reason = verdict.reason.replace(f"{work.folder}/", "")
        raise _unusable(path, verdict.stage, reason, made_up=work.probe_kind == "random")
    verdict, have = found[FLOAT32.name]
    if have is not None and evaluate.same(have, want):
        return replace(work, reference=have, drafts=(Draft(FLOAT32, artifacts[FLOAT32.name]),))
    why = verdict.reason or "it changed the answers"
    note = f"clean-up undone: {why}"
    plain = emitter.emit(work.imported, FLOAT32, work.profile)
    draft = Draft(FLOAT32, plain)
    return replace(work, cleaned=work.imported, reference=want, drafts=(draft,), notes=(*work.notes, note))


def _unusable(path: Path, stage: str, reason: str, *, made_up: bool) -> ModelError:
    if stage == "load":
        return ModelError(
            f"{path} cannot be loaded by the runtime: {reason}", hint="export it with supported operators"
        )
    hint = "give real inputs with --calibrate or --evaluate" if made_up else "check that the samples suit the model"
    return ModelError(f"{path} fails on {'made-up' if made_up else 'the given'} inputs: {reason}", hint=hint)


def _quantized(work: Work) -> Work:
    if work.recipe.precision == "float32":
        return work
    scheme: Scheme = plugins.load("converters.quantize", work.recipe.scheme)
    try:
        precision = _planned(work, scheme)
        draft = Draft(precision, _emitter().emit(work.cleaned, precision, work.profile))
    except CheckError as e:
        if work.recipe.precision == scheme.precision:
            raise search.denied(scheme.precision, f"cannot be used: {e.message}") from e
        draft = Draft(Precision(scheme.precision), failure=e.message)
    return replace(work, drafts=(*work.drafts, draft))


def _planned(work: Work, scheme: Scheme) -> Precision:
    if scheme.precision not in work.profile.precisions:
        raise CheckError(f"profile {work.profile.name} does not execute {scheme.precision} well")
    if work.calibrate is None:
        raise CheckError("there are no calibration samples (--calibrate)")
    names = scheme.observed(work.cleaned)
    if not names:
        raise CheckError("the graph has nothing that 8 bits would help")
    timeout_s = _CALIBRATION_S + _CALIBRATION_SAMPLE_S * len(work.calibrate)
    ranges = calibrate.observe(work.cleaned, names, work.calibrate, work.folder, timeout_s=timeout_s)
    return scheme.plan(work.cleaned, ranges, scheme.options_for(work.profile))


def _written(work: Work, candidates: tuple[Candidate, ...], request: Request, outputs: Outputs) -> Result:
    chosen = next(candidate for candidate in candidates if candidate.chosen)
    draft = next(draft for draft in work.drafts if draft.precision.name == chosen.precision)
    training = None
    if work.recipe.train:
        training = training_build.build(work.imported, batch_size=work.recipe.batch_size)
        training_build.check(training)
    contents = package.contents(
        work,
        draft,
        training,
        min_runtime=_emitter().min_runtime(draft.data),
        weights=None if request.weights is None else digest_file(request.weights),
    )
    with ExitStack() as stack:
        # The bundle is the outermost, so it takes its place last: where it is, the other two are.
        new_bundle = stack.enter_context(replacing(outputs.bundle))
        new_source = stack.enter_context(replacing(outputs.source))
        new_report = stack.enter_context(replacing(outputs.report))
        made = bundle.create(new_bundle, contents.manifest, contents.artifacts)
        measured = _report(work, candidates, made)
        text = measured.model_dump_json(indent=2).encode() + b"\n"
        packed = source.pack(_source(work, draft, text))
        new_report.write_bytes(text)
        new_source.write_bytes(packed)
    return Result(outputs, made, digest(packed), measured)


def _report(work: Work, candidates: tuple[Candidate, ...], made: str) -> Report:
    samples, kind = measure.measured_on(work)
    return Report(
        bundle=made,
        model=work.recipe.model,
        profile=work.recipe.profile,
        metric=measure.metric_of(work),
        measured_on=kind,
        samples=len(samples),
        budget_points=work.recipe.max_drop_points,
        candidates=candidates,
        notes=work.notes,
        machine=report.machine(),
        versions=report.versions(),
    )


def _source(work: Work, draft: Draft, text: bytes) -> source.Source:
    quantized = draft.precision.weights
    scheme: Scheme | None = plugins.load("converters.quantize", work.recipe.scheme) if quantized else None
    lock = Lock(
        profile=work.profile,
        precision=draft.precision.name,
        scheme=work.recipe.scheme if scheme else "",
        observer=scheme.observer if scheme else "",
        weight_bits=quantized.bits if quantized else None,
        tools=report.versions(),
    )
    return source.Source(
        work.recipe,
        lock,
        graph.serialize(work.imported),
        text,
        work.files.get("calibrate"),
        work.files.get("evaluate"),
    )


def _emitter() -> Emitter:
    emitter: Emitter = plugins.load("converters.emit", "onnx")
    return emitter
