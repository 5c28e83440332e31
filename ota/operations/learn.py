"""Federated jobs."""

from datetime import timedelta
from typing import Any

from pydantic import ValidationError

from edgert import plugins
from edgert.bundle import Bundle, parse_image
from edgert.config import explain
from edgert.errors import UsageError
from edgert.federated.job import FINAL, Job, Phase
from edgert.federated.plan import LocalTraining, Plan
from ota import audit
from ota.fleet import Fleet
from ota.operations.actor import Actor, Right
from ota.store import BundleRow, JobRow, ReleaseRow, Session, devices, jobs, releases

__all__ = ["federate_start", "federate_status", "federate_stop", "local_training"]

_GRACE_S = 3600.0


def federate_start(
    fleet: Fleet,
    actor: Actor,
    model: str,
    *,
    participants: int,
    quorum: int | None = None,
    rounds: int = 1,
    deadline_s: float = 120.0,
    aggregator: str = "fedavg",
    profile: str | None = None,
    local: LocalTraining | None = None,
) -> dict[str, Any]:
    """Plan a job; the running server takes it up.

    Args:
        quorum: None = all participants.
        profile: whose bundle is trained; needed when the release has several.
        local: what each participant does in a round; None = the defaults.

    Raises:
        UsageError: the newest release cannot be trained or rebuilt, too few devices are to serve it, another job of
            this model is under way, or the numbers contradict each other.
    """
    actor.require(Right.LEARN)
    plugins.load("edgert.federated.aggregators", aggregator)
    with fleet.database.write() as session:
        release = releases.get(session, model)
        base = _base(release, profile)
        _check_rebuildable(release)
        _check_free(session, model)
        _check_able(session, release, base, participants)
        weights, size_bytes = _weights(fleet, base)
        wanted = participants if quorum is None else quorum
        count = sum(1 for row in jobs.every(session) if row.model == model) + 1
        plan = _plan(
            fleet,
            {
                "job": f"{model[:48]}-{count}",
                "model": model,
                "base": base.digest,
                "rounds": rounds,
                "participants": participants,
                "quorum": wanted,
                "deadline_s": deadline_s,
                "aggregator": aggregator,
                "local": local or LocalTraining(),
            },
        )
        row = _row(plan, release.version, weights, size_bytes)
        session.add(row)
        audit.write(session, fleet.clock, actor.name, "federate start", plan.job, base=base.digest, rounds=rounds)
        session.flush()
        return _describe(row)


def federate_status(fleet: Fleet, actor: Actor, job: str | None = None) -> list[dict[str, Any]]:
    """Where jobs stand.

    Args:
        job: None = all of them, oldest first.

    Raises:
        UsageError: there is no such job.
    """
    actor.require(Right.READ)
    with fleet.database.read() as session:
        return [_describe(row) for row in (jobs.every(session) if job is None else [jobs.get(session, job)])]


def federate_stop(fleet: Fleet, actor: Actor, job: str) -> dict[str, Any]:
    """Ask for the end of a job: the running server aborts it.

    Raises:
        UsageError: there is no such job, it is over, or its release is being signed.
    """
    actor.require(Right.LEARN)
    with fleet.database.write() as session:
        row = jobs.get(session, job)
        if row.phase in FINAL:
            raise UsageError(f"job {job} is {row.phase}: it is over", hint="see `edgert federate status`")
        if row.phase == Phase.GATED:
            raise UsageError(
                f"job {job} is publishing its release already",
                hint="afterwards `edgert ota rollout --version` gives devices the version before",
            )
        row.stopped_by = row.stopped_by or actor.name
        audit.write(session, fleet.clock, actor.name, "federate stop", job)
        return _describe(row)


def local_training(
    *, epochs: int | None = None, learning_rate: float | None = None, momentum: float | None = None
) -> LocalTraining:
    """What a participant does in a round, from what an operator gave; None = the default.

    Raises:
        UsageError: a number is out of range.
    """
    given = {"epochs": epochs, "learning_rate": learning_rate, "momentum": momentum}
    try:
        return LocalTraining.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as e:
        raise UsageError(f"nobody can train so: {explain(e)}", hint="see `edgert federate start --help`") from e


def _row(plan: Plan, base_version: int, weights: str, size_bytes: int) -> JobRow:
    state = Job(
        participants=plan.participants,
        quorum=plan.quorum,
        rounds=plan.rounds,
        weights=weights,
        weights_bytes=size_bytes,
    )
    return JobRow(
        name=plan.job,
        model=plan.model,
        base_version=base_version,
        created=plan.issued,
        plan=plan.model_dump_json(),
        state=state.model_dump_json(),
        phase=state.phase.value,
    )


def _plan(fleet: Fleet, values: dict[str, Any]) -> Plan:
    now = fleet.clock.now()
    try:
        lifetime_s = (int(values["rounds"]) + 1) * float(values["deadline_s"]) + _GRACE_S
        return Plan.model_validate(values | {"issued": now, "expires": now + timedelta(seconds=lifetime_s)})
    except (ValidationError, OverflowError) as e:
        text = explain(e) if isinstance(e, ValidationError) else str(e)
        raise UsageError(f"the job cannot be: {text}", hint="see `edgert federate start --help`") from e


def _base(release: ReleaseRow, profile: str | None) -> BundleRow:
    fitting = [row for row in release.bundles if profile in (None, row.profile)]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(row.profile for row in release.bundles)
    raise UsageError(
        f"release {release.version} of {release.model} has bundles for {known}", hint="name one of them: --profile"
    )


def _check_rebuildable(release: ReleaseRow) -> None:
    for row in release.bundles:
        name = f"version {release.version} of {release.model} ({row.profile})"
        if row.source is None:
            raise UsageError(
                f"{name} was published without its source: it cannot be rebuilt",
                hint="convert the model again and publish the new bundle with its source",
            )
        if row.metric != "top1" or row.accuracy is None:
            raise UsageError(
                f"{name} was converted without labelled evaluation samples: what is learned could not be judged",
                hint="convert it with --evaluate and labels",
            )


def _check_able(session: Session, release: ReleaseRow, base: BundleRow, participants: int) -> None:
    able = len(devices.of_model(session, base.digest))
    if able < participants:
        raise UsageError(
            f"{participants} participants are wanted, {able} devices are to serve {release.model} version "
            f"{release.version} ({base.profile})",
            hint=f"roll it out first: edgert ota rollout HOME --model {release.model}",
        )


def _check_free(session: Session, model: str) -> None:
    for row in jobs.outside(session, [phase.value for phase in FINAL]):
        if row.model == model:
            raise UsageError(
                f"job {row.name} of {model} is under way", hint="wait for its end, or `edgert federate stop` it"
            )


def _weights(fleet: Fleet, base: BundleRow) -> tuple[str, int]:
    bundle = Bundle.load(fleet.store, base.digest)
    if bundle.manifest.training is None or bundle.manifest.artifact("weights") is None:
        raise UsageError(
            f"the bundle of {bundle.manifest.model} holds no training graph", hint="convert the model with --train"
        )
    digest = bundle.require("weights").digest
    return digest, parse_image(fleet.store.read(base.digest)).blobs()[digest]


def _describe(row: JobRow) -> dict[str, Any]:
    state = Job.model_validate_json(row.state)
    plan = Plan.model_validate_json(row.plan)
    return {
        "job": row.name,
        "model": row.model,
        "base_version": row.base_version,
        "phase": row.phase,
        "reason": row.reason,
        "round": state.round,
        "rounds": state.rounds,
        "participants": state.participants,
        "quorum": state.quorum,
        "deadline_s": plan.deadline_s,
        "joined": sorted(state.joined),
        "received": {
            device: {"examples": part.examples, "loss": part.loss, "size_bytes": part.size_bytes}
            for device, part in sorted(state.received.items())
        },
        "declined": dict(sorted(state.declined.items())),
        "accuracy": row.accuracy,
        "version": row.release_version,
        "rollout": row.rollout,
    }
