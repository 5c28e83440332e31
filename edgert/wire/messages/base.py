"""What all messages share: JSON, a format number, unknown fields ignored (they come from machines)."""

from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from edgert.config import explain
from edgert.errors import MessageError

__all__ = ["LIMIT_BYTES", "Count", "Message", "Text"]

LIMIT_BYTES: Final = 64 << 10
_TEXT_LIMIT: Final = 2000


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else " " for sign in text[:_TEXT_LIMIT])


Count = Annotated[int, Field(ge=0, lt=1 << 63)]
"""A number that fits a database column."""

Text = Annotated[str, AfterValidator(_printable)]
"""Words for people: cut after 2000 characters, control characters become spaces, so that a log or a terminal can show
what another machine says."""


class Message(BaseModel):
    """A typed message."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    format: Literal[1] = 1

    def encode(self) -> bytes:
        """The bytes on the wire."""
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in `payload`.

        Raises:
            MessageError: too long, not JSON, or not this message.
        """
        if len(payload) > LIMIT_BYTES:
            raise MessageError(f"a {cls.__name__} of {len(payload)} bytes is too long")
        try:
            return cls.model_validate_json(payload)
        except ValidationError as e:
            raise MessageError(f"not a {cls.__name__}: {explain(e)[:300]}") from e
