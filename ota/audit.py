"""Who did what to what, and when: one line per operation, written in the operation's own transaction."""

import logging
from typing import Any

from edgert.clock import Clock
from ota.store import Session
from ota.store import audit as rows

__all__ = ["write"]

logger = logging.getLogger(__name__)


def write(session: Session, clock: Clock, actor: str, action: str, subject: str, **detail: Any) -> None:
    """Append a line that becomes durable together with what it tells about.

    Args:
        actor: who did it, for example ``cli:anna`` or ``job:digits-1``.
        action: the operation's name.
        subject: what it was done to.
        detail: values JSON can hold; no secrets.
    """
    rows.append(session, clock.now(), actor, action, subject, detail)
    logger.info("%s: %s %s", actor, action, subject)
