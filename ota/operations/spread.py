"""Rollouts."""

from collections.abc import Sequence
from typing import Any

from edgert.errors import UsageError
from ota import audit
from ota.fleet import Fleet
from ota.operations.actor import Actor, Right
from ota.rollouts import engine
from ota.store import ReleaseRow, RolloutRow, Session, devices, releases, rollouts

__all__ = ["rollout_start", "rollout_status"]


def rollout_start(
    fleet: Fleet,
    actor: Actor,
    model: str,
    *,
    version: int | None = None,
    names: Sequence[str] = (),
    strategy: str = "all-at-once",
) -> dict[str, Any]:
    """Begin to spread a release.

    Args:
        version: None = the newest.
        names: of devices; empty = every device whose profile the release has a bundle for.

    Raises:
        UsageError: there is no such release, device or strategy, or no device the release fits.
    """
    actor.require(Right.ROLLOUT)
    with fleet.database.write() as session:
        release = releases.get(session, model, version)
        chosen = _fitting(session, release, names)
        row = engine.begin(session, model, release.version, strategy, chosen, fleet.clock.now())
        subject = f"{model} version {release.version}"
        audit.write(session, fleet.clock, actor.name, "rollout", subject, rollout=row.id, devices=chosen)
        return _describe(row)


def rollout_status(fleet: Fleet, actor: Actor, rollout: int) -> dict[str, Any]:
    """Where a rollout stands.

    Raises:
        UsageError: there is none of that number.
    """
    actor.require(Right.READ)
    with fleet.database.read() as session:
        return _describe(rollouts.get(session, rollout))


def _fitting(session: Session, release: ReleaseRow, names: Sequence[str]) -> list[str]:
    profiles = {row.profile for row in release.bundles}
    if names:
        rows = [devices.get(session, name) for name in dict.fromkeys(names)]
        wrong = [row.id for row in rows if row.profile not in profiles]
        if wrong:
            raise UsageError(
                f"{release.model} version {release.version} has bundles for {sorted(profiles)}, which does not fit "
                f"{', '.join(wrong)}",
                hint="see the profiles in `edgert ota devices`",
            )
        return [row.id for row in rows]
    fitting = [row.id for row in devices.every(session) if row.profile in profiles]
    if not fitting:
        raise UsageError(
            f"no enrolled device has profile {' or '.join(sorted(profiles))}", hint="see `edgert ota devices`"
        )
    return fitting


def _describe(row: RolloutRow) -> dict[str, Any]:
    return {
        "rollout": row.id,
        "model": row.model,
        "version": row.version,
        "strategy": row.strategy,
        "status": row.status,
        "reason": row.reason,
        "devices": {
            part.device: {
                "status": part.status,
                "phase": part.phase,
                "done_bytes": part.done_bytes,
                "total_bytes": part.total_bytes,
                "error": part.error,
            }
            for part in row.devices
        },
    }
