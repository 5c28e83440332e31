"""What the supervisor and the inference child say to each other: JSON, one message a line, over a socket pair.

Every command is answered by one :class:`Done` or :class:`Failed` with its number. The child says :class:`Hello` once
and :class:`Beat` every second. End of file in either direction means that the other side is gone.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from edgert.config import explain
from edgert.errors import MessageError
from edgert.manifest import Digest, Name

__all__ = [
    "BEAT_S",
    "BODY_LIMIT_BYTES",
    "LINE_LIMIT_BYTES",
    "Beat",
    "Command",
    "Done",
    "Event",
    "Failed",
    "Hello",
    "Load",
    "Model",
    "Open",
    "Stats",
    "Stop",
    "Unload",
    "encode",
    "read_command",
    "read_event",
]

BEAT_S: Final = 1.0
LINE_LIMIT_BYTES: Final = 1 << 20
BODY_LIMIT_BYTES: Final = 64 << 20


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Model(_Value):
    """A model version, and where its bundle is in the store."""

    model: Name
    version: int = Field(ge=1)
    digest: Digest


class _Numbered(_Value):
    number: int = 0


class Open(_Numbered):
    """Load these models, then begin to accept connections; the result names the models that failed."""

    kind: Literal["open"] = "open"
    models: tuple[Model, ...] = ()


class Load(_Numbered):
    """Load a version; done when it answers."""

    kind: Literal["load"] = "load"
    what: Model


class Unload(_Numbered):
    """Forget a model."""

    kind: Literal["unload"] = "unload"
    model: Name


class Stats(_Numbered):
    """Say what was answered so far."""

    kind: Literal["stats"] = "stats"


class Stop(_Numbered):
    """Answer what is in flight, then end."""

    kind: Literal["stop"] = "stop"


class Hello(_Value):
    """The child runs."""

    kind: Literal["hello"] = "hello"
    loop: str = ""


class Beat(_Value):
    """The child's event loop is alive."""

    kind: Literal["beat"] = "beat"


class Done(_Numbered):
    """A command was carried out."""

    kind: Literal["done"] = "done"
    result: dict[str, Any] = {}


class Failed(_Numbered):
    """A command could not be carried out; nothing changed."""

    kind: Literal["failed"] = "failed"
    error: str
    hint: str = ""


Command = Open | Load | Unload | Stats | Stop
Event = Hello | Beat | Done | Failed
_COMMANDS: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="kind")])
_EVENTS: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def encode(message: Command | Event) -> bytes:
    """The line for a message."""
    return message.model_dump_json().encode() + b"\n"


def read_command(line: bytes) -> Command:
    """The command in a line.

    Raises:
        MessageError: it is none.
    """
    try:
        return _COMMANDS.validate_json(line)
    except ValidationError as e:
        raise MessageError(f"not a command: {explain(e)[:300]}") from e


def read_event(line: bytes) -> Event:
    """The event in a line.

    Raises:
        MessageError: it is none.
    """
    try:
        return _EVENTS.validate_json(line)
    except ValidationError as e:
        raise MessageError(f"not an event: {explain(e)[:300]}") from e
