"""Claims."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from ota.store.models import ClaimRow

__all__ = ["every", "find", "of_device"]


def find(session: Session, name: str) -> ClaimRow | None:
    """The claim, or None."""
    return session.get(ClaimRow, name)


def every(session: Session) -> Sequence[ClaimRow]:
    """All claims, by name."""
    return session.scalars(select(ClaimRow).order_by(ClaimRow.name)).all()


def of_device(session: Session, device: str) -> ClaimRow | None:
    """The claim that was made for that device, or None."""
    return session.scalars(select(ClaimRow).where(ClaimRow.device == device)).one_or_none()
