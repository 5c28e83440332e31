"""Releases and their bundles."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgert.errors import UsageError
from ota.store.models import BundleRow, ReleaseRow

__all__ = ["bundle_for", "get", "latest_version", "of_job"]


def latest_version(session: Session, model: str) -> int:
    """The newest version of a model, 0 before the first."""
    return session.scalar(select(func.max(ReleaseRow.version)).where(ReleaseRow.model == model)) or 0


def get(session: Session, model: str, version: int | None = None) -> ReleaseRow:
    """One release, the newest when no version is given.

    Raises:
        UsageError: there is none.
    """
    wanted = latest_version(session, model) if version is None else version
    query = select(ReleaseRow).where(ReleaseRow.model == model, ReleaseRow.version == wanted)
    row = session.scalars(query).one_or_none()
    if row is None:
        name = model if version is None else f"{model} version {version}"
        raise UsageError(f"there is no release of {name}", hint="publish one with `edgert ota publish`")
    return row


def bundle_for(session: Session, model: str, version: int, profile: str) -> BundleRow | None:
    """A release's bundle for one profile, or None."""
    query = (
        select(BundleRow)
        .join(ReleaseRow)
        .where(ReleaseRow.model == model, ReleaseRow.version == version, BundleRow.profile == profile)
    )
    return session.scalars(query).one_or_none()


def of_job(session: Session, job: str) -> ReleaseRow | None:
    """The release a federated job has made, or None."""
    return session.scalars(select(ReleaseRow).where(ReleaseRow.job == job)).one_or_none()
