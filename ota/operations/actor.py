"""Who wants something, and what they may do."""

import getpass
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from edgert.errors import RefusedError

__all__ = ["Actor", "Right", "job_actor", "local_operator"]


class Right(StrEnum):
    """What somebody may do."""

    READ = "read"
    PUBLISH = "publish"
    ROLLOUT = "rollout"
    ENROL = "enrol"
    LEARN = "learn"


_ALL: Final = frozenset(Right)


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody with rights.

    Args:
        name: as in the audit log, for example ``cli:anna``.
        rights: everything not in it is refused.
    """

    name: str
    rights: frozenset[Right]

    def require(self, right: Right) -> None:
        """Go on only with that right.

        Raises:
            RefusedError: the actor does not have it.
        """
        if right not in self.rights:
            raise RefusedError(f"{self.name} may not {right}", hint="ask an operator of this fleet")


def local_operator() -> Actor:
    """Whoever can read the fleet's home folder may do everything: the keys lie in it."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = "unknown"
    return Actor(f"cli:{name}", _ALL)


def job_actor(job: str) -> Actor:
    """A federated job, which may publish what it learned and spread it."""
    return Actor(f"job:{job}", frozenset({Right.READ, Right.PUBLISH, Right.ROLLOUT}))
