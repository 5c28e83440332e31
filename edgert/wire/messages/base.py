"""What all messages share: JSON, a format number, unknown fields ignored (they come from machines)."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from edgert.config import explain
from edgert.errors import MessageError

__all__ = ["LIMIT_BYTES", "Message"]

LIMIT_BYTES = 64 << 10


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
