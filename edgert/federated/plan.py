"""What a federated job is: announced, signed, and checked for what it cannot keep before anyone trains."""

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgert.config import explain
from edgert.errors import MessageError
from edgert.manifest import Digest, Name

__all__ = ["LocalTraining", "Plan"]


class LocalTraining(BaseModel):
    """What a participant does with its own examples in one round.

    Args:
        epochs: passes over the examples.
        learning_rate, momentum: of stochastic gradient descent.
        seed: with device and round it fixes the order of the examples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: int = Field(default=1, ge=1, le=1000)
    learning_rate: float = Field(default=0.02, gt=0, le=10)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    seed: int = Field(default=7, ge=0)


class Plan(BaseModel):
    """A federated job.

    Args:
        job: its name.
        model: which model is trained.
        base: digest of the bundle that participants must serve; its `weights` artifact is where round 1 starts.
        rounds: how many.
        participants: how many devices take part; a round is closed when all of them have answered ...
        quorum: ... or, after the deadline, when at least so many updates are here; fewer abort the job.
        deadline_s: for one round.
        aggregator: name of a plug-in in ``edgert/federated/aggregators``.
        issued, expires: the job counts only between them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1] = 1
    job: Name
    model: Name
    base: Digest
    rounds: int = Field(default=1, ge=1, le=10_000)
    participants: int = Field(ge=1)
    quorum: int = Field(ge=1)
    deadline_s: float = Field(default=120.0, gt=0)
    aggregator: Name = "fedavg"
    local: LocalTraining = LocalTraining()
    issued: AwareDatetime
    expires: AwareDatetime

    @model_validator(mode="after")
    def _consistent(self) -> "Plan":
        if self.quorum > self.participants:
            raise ValueError(f"a quorum of {self.quorum} cannot be met by {self.participants} participants")
        return self

    def encode(self) -> bytes:
        """The payload of the announcement's envelope."""
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, payload: bytes) -> "Plan":
        """The plan in the (verified) payload of an announcement.

        Raises:
            MessageError: not a plan.
        """
        try:
            return cls.model_validate_json(payload)
        except ValidationError as e:
            raise MessageError(f"not a plan: {explain(e)[:300]}") from e
