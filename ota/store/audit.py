"""The audit log."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ota.store.models import AuditRow

__all__ = ["append", "newest"]


def append(session: Session, time: datetime, actor: str, action: str, subject: str, detail: dict[str, Any]) -> None:
    """Add one line, in the transaction of what it tells about."""
    session.add(AuditRow(time=time, actor=actor, action=action, subject=subject, detail=detail))


def newest(session: Session, count: int) -> Sequence[AuditRow]:
    """The last `count` lines, newest first."""
    return session.scalars(select(AuditRow).order_by(AuditRow.id.desc()).limit(count)).all()
