"""Publishing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ota import audit, releases
from ota.fleet import Fleet
from ota.operations.actor import Actor, Right
from ota.store import ReleaseRow, Session

__all__ = ["publish"]


def publish(
    fleet: Fleet,
    actor: Actor,
    bundles: Sequence[Path],
    *,
    sources: Sequence[Path] = (),
    without_source: bool = False,
    job: str = "",
) -> dict[str, Any]:
    """Make a signed release of bundle files, one per profile.

    Returns:
        ``model``, ``version``, ``target`` (of the first bundle) and ``bundles``.

    Raises:
        UsageError, BundleError, StoreError: see `ota.releases`.
    """
    actor.require(Right.PUBLISH)

    def written(session: Session, release: ReleaseRow) -> None:
        subject, digests = f"{release.model} version {release.version}", [row.digest for row in release.bundles]
        audit.write(session, fleet.clock, actor.name, "publish", subject, bundles=digests)

    parts = releases.parts_of(bundles, sources, without_source=without_source)
    release = releases.publish(fleet, parts, job=job, written=written)
    rows = [{"profile": row.profile, "digest": row.digest, "target": row.target} for row in release.bundles]
    return {"model": release.model, "version": release.version, "target": rows[0]["target"], "bundles": rows}
