"""Rollouts."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgert.errors import UsageError
from ota.store.models import RolloutDeviceRow, RolloutRow

__all__ = ["following", "get", "unfinished"]


def get(session: Session, rollout: int) -> RolloutRow:
    """One rollout.

    Raises:
        UsageError: there is none.
    """
    row = session.get(RolloutRow, rollout)
    if row is None:
        raise UsageError(f"there is no rollout {rollout}", hint="`edgert ota rollout` says its number when it starts")
    return row


def unfinished(session: Session, model: str, status: str) -> Sequence[RolloutRow]:
    """Rollouts of a model in that status, oldest first."""
    query = select(RolloutRow).where(RolloutRow.model == model, RolloutRow.status == status)
    return session.scalars(query.order_by(RolloutRow.id)).all()


def following(session: Session, device: str, status: str) -> Sequence[tuple[RolloutRow, RolloutDeviceRow]]:
    """Rollouts in which a device has that status, with its row, oldest first."""
    query = (
        select(RolloutRow, RolloutDeviceRow)
        .join(RolloutDeviceRow, RolloutDeviceRow.rollout_id == RolloutRow.id)
        .where(RolloutDeviceRow.device == device, RolloutDeviceRow.status == status)
    )
    return [(row[0], row[1]) for row in session.execute(query.order_by(RolloutRow.id))]
