"""Federated jobs."""

from collections.abc import Collection, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgert.errors import UsageError
from ota.store.models import JobRow

__all__ = ["every", "get", "outside"]


def get(session: Session, job: str) -> JobRow:
    """One job.

    Raises:
        UsageError: there is none.
    """
    row = session.get(JobRow, job)
    if row is None:
        raise UsageError(f"there is no federated job {job!r}", hint="see `edgert federate status`")
    return row


def every(session: Session) -> Sequence[JobRow]:
    """All jobs, oldest first."""
    return session.scalars(select(JobRow).order_by(JobRow.created, JobRow.name)).all()


def outside(session: Session, phases: Collection[str]) -> Sequence[JobRow]:
    """Jobs that are in none of `phases`, oldest first."""
    query = select(JobRow).where(JobRow.phase.not_in(phases))
    return session.scalars(query.order_by(JobRow.created, JobRow.name)).all()
