"""What the coordinator and a participant say during a federated job.

Down: an envelope around :class:`~edgert.federated.plan.Plan` on ``j/{job}`` (retained, type JOB_TYPE);
:class:`Invite`, :class:`RoundOver` on ``d/{id}/fl/in``. Up, on ``d/{id}/fl/out``: :class:`Join`, :class:`Offer`,
:class:`Decline`. The update itself travels by the blob protocol: the coordinator asks for its ranges.
"""

from typing import Annotated, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from edgert.errors import MessageError
from edgert.manifest import Digest, Name
from edgert.wire.messages.base import LIMIT_BYTES, Count, Message, Text

__all__ = ["Decline", "Down", "Invite", "Join", "Offer", "RoundOver", "Up", "decode_down", "decode_up"]


class Join(Message):
    """I take part in this job: I serve its model and have examples."""

    kind: Literal["join"] = "join"
    job: Name
    examples: Count = Field(ge=1)


class Invite(Message):
    """Train for this round, starting from these weights.

    Args:
        round: counts from 1.
        weights: digest of an ``.npz`` file of the current weights, fetched by the blob protocol if not at hand.
        weights_bytes: its size.
        deadline_s: an update that is offered later than this is not used.
    """

    kind: Literal["invite"] = "invite"
    job: Name
    round: Count = Field(ge=1)
    weights: Digest
    weights_bytes: Count = Field(ge=1)
    deadline_s: float = Field(gt=0)


class Offer(Message):
    """My update for this round is ready.

    Args:
        update: digest of an ``.npz`` file of weight differences by initializer name, float32.
        update_bytes: its size.
        examples: how many it was trained on = its weight in the mean.
        loss: mean training loss of the last epoch.
    """

    kind: Literal["offer"] = "offer"
    job: Name
    round: Count = Field(ge=1)
    update: Digest
    update_bytes: Count = Field(ge=1)
    examples: Count = Field(ge=1)
    loss: float = Field(allow_inf_nan=False)


class Decline(Message):
    """I cannot train in this round."""

    kind: Literal["decline"] = "decline"
    job: Name
    round: Count = Field(ge=1)
    reason: Text


class RoundOver(Message):
    """The round is closed, with or without you."""

    kind: Literal["over"] = "over"
    job: Name
    round: Count = Field(ge=1)


Up = Annotated[Join | Offer | Decline, Field(discriminator="kind")]
Down = Annotated[Invite | RoundOver, Field(discriminator="kind")]
_UP: TypeAdapter[Join | Offer | Decline] = TypeAdapter(Up)
_DOWN: TypeAdapter[Invite | RoundOver] = TypeAdapter(Down)


def decode_up(payload: bytes) -> Join | Offer | Decline:
    """A participant's message.

    Raises:
        MessageError: not one.
    """
    return _decode(_UP, payload)


def decode_down(payload: bytes) -> Invite | RoundOver:
    """A coordinator's message.

    Raises:
        MessageError: not one.
    """
    return _decode(_DOWN, payload)


_T = TypeVar("_T")


def _decode(adapter: TypeAdapter[_T], payload: bytes) -> _T:
    if len(payload) > LIMIT_BYTES:
        raise MessageError(f"a message of {len(payload)} bytes is too long")
    try:
        return adapter.validate_json(payload)
    except ValidationError as e:
        raise MessageError("not a message of a federated job") from e
