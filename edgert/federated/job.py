"""The words of a federated job as its coordinator knows it: its state, what may happen to it, what it makes happen.

What follows from what is decided in :mod:`edgert.federated.round`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from edgert.manifest import Digest

__all__ = [
    "FINAL",
    "Aborted",
    "Announce",
    "Average",
    "Averaged",
    "Close",
    "Confirm",
    "Contribution",
    "Deadline",
    "Declined",
    "Effect",
    "Event",
    "Fetch",
    "Invite",
    "Job",
    "Joined",
    "Lost",
    "Offered",
    "Passed",
    "Phase",
    "Publish",
    "Published",
    "Rebuild",
    "Received",
    "Reconnected",
    "Refused",
    "Resumed",
    "StartTimer",
    "Started",
    "Stopped",
    "Withdraw",
]


class Phase(StrEnum):
    """Where a job stands."""

    PLANNED = "PLANNED"
    ANNOUNCED = "ANNOUNCED"
    COLLECTING = "COLLECTING"
    AVERAGING = "AVERAGING"
    AGGREGATED = "AGGREGATED"
    GATED = "GATED"
    PUBLISHED = "PUBLISHED"
    ABORTED = "ABORTED"


FINAL: Final = frozenset({Phase.PUBLISHED, Phase.ABORTED})


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Contribution(_Value):
    """What a device offers: digest and size of its update, the number of examples behind it, its training loss."""

    digest: Digest
    size_bytes: int = Field(ge=1)
    examples: int = Field(ge=1)
    loss: float


class Job(_Value):
    """Everything the coordinator must remember; written down before the effects of every step.

    Args:
        participants, quorum, rounds: as in the plan.
        weights, weights_bytes: where the current round starts.
        round: counts from 1; 0 while devices join.
        joined: who takes part.
        offered: updates on their way, by device.
        received: updates that are durable here, by device.
        declined: why a device has no part in this round.
        reason: why the job was aborted.
    """

    format: int = 1
    phase: Phase = Phase.PLANNED
    participants: int
    quorum: int
    rounds: int
    weights: Digest
    weights_bytes: int
    round: int = 0
    joined: frozenset[str] = frozenset()
    offered: Mapping[str, Contribution] = {}
    received: Mapping[str, Contribution] = {}
    declined: Mapping[str, str] = {}
    reason: str = ""

    def outstanding(self) -> list[str]:
        """Devices of this round that have neither delivered nor declined."""
        return sorted(self.joined - self.received.keys() - self.declined.keys())


# Events


@dataclass(frozen=True, slots=True)
class Started:
    """The server takes up a new job."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The server takes up a job that an earlier process began."""


@dataclass(frozen=True, slots=True)
class Reconnected:
    """The broker may have lost what it kept."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A device takes part, or says so again."""

    device: str


@dataclass(frozen=True, slots=True)
class Offered:
    """A device has an update ready, or says so again."""

    device: str
    round: int
    contribution: Contribution


@dataclass(frozen=True, slots=True)
class Declined:
    """A device cannot train in a round."""

    device: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Received:
    """An update is durable here and fits the model."""

    device: str
    digest: str


@dataclass(frozen=True, slots=True)
class Refused:
    """An update arrived and cannot be used."""

    device: str
    digest: str
    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """An update did not arrive; the device may offer it again."""

    device: str
    digest: str


@dataclass(frozen=True, slots=True)
class Deadline:
    """The time of a round is over (0 = of joining)."""

    round: int


@dataclass(frozen=True, slots=True)
class Averaged:
    """The new weights are durable."""

    weights: str
    weights_bytes: int


@dataclass(frozen=True, slots=True)
class Passed:
    """The rebuilt model is good enough."""


@dataclass(frozen=True, slots=True)
class Published:
    """It is a signed release."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """An operator wants it to end; too late once its release is being signed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Aborted:
    """Something that cannot be repaired: a failed gate, a failed conversion."""

    reason: str


# Effects


@dataclass(frozen=True, slots=True)
class Announce:
    """Publish the signed plan, kept by the broker."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take the announcement back."""


@dataclass(frozen=True, slots=True)
class StartTimer:
    """Send `Deadline` of this round when its time is over; one that runs already goes on."""

    round: int


@dataclass(frozen=True, slots=True)
class Invite:
    """Ask a device to train from the current weights."""

    device: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get an update; answer with `Received`, `Refused` or `Lost`."""

    device: str
    contribution: Contribution


@dataclass(frozen=True, slots=True)
class Confirm:
    """Tell a device that its update is durable here."""

    device: str
    digest: str


@dataclass(frozen=True, slots=True)
class Close:
    """Tell a device that a round is over."""

    device: str
    round: int


@dataclass(frozen=True, slots=True)
class Average:
    """Make new weights of what was received; answer with `Averaged`."""


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Convert the new weights and measure the result; answer with `Passed` or `Aborted`."""


@dataclass(frozen=True, slots=True)
class Publish:
    """Sign the rebuilt model and roll it out; answer with `Published`."""


Event: TypeAlias = (
    Started | Resumed | Reconnected | Joined | Offered | Declined | Received | Refused | Lost | Deadline
    | Averaged | Passed | Published | Stopped | Aborted
)  # fmt: skip
Effect: TypeAlias = Announce | Withdraw | StartTimer | Invite | Fetch | Confirm | Close | Average | Rebuild | Publish
