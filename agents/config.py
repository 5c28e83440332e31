"""The settings of an agent: safe defaults, then an optional TOML file, then the command line."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgert.config import explain, read_toml
from edgert.errors import ConfigError
from edgert.manifest import Name

__all__ = ["AgentConfig", "load"]


class AgentConfig(BaseModel):
    """How one agent runs; read once, at start.

    Args:
        state: folder that holds everything the agent keeps.
        kit: the enrolment kit; not needed once the box is enrolled.
        profile: what kind of box this is; None = the best match of this machine.
        serve_host, serve_port: where the box answers inference requests; loopback unless told otherwise.
        examples: per model a folder of ``.npz`` files to learn from; they never leave the box.
        trial_timeout_s: for one trial of a new bundle.
        trial_memory_bytes: of the trial's child; None = what the profile says.
        training_memory_bytes: of the training child.
        log_level: DEBUG, INFO, WARNING or ERROR.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    state: Path
    kit: Path | None = None
    profile: Name | None = None
    serve_host: str = "127.0.0.1"
    serve_port: int = Field(default=8080, ge=0, le=65535)
    examples: dict[Name, Path] = Field(default_factory=dict)
    trial_timeout_s: float = Field(default=60.0, gt=0)
    trial_memory_bytes: int | None = Field(default=None, gt=0)
    training_memory_bytes: int = Field(default=1 << 30, gt=0)
    log_level: str = Field(default="INFO", pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")


def load(path: Path | None, overrides: Mapping[str, object]) -> AgentConfig:
    """The settings in the TOML file `path`, with `overrides` on top (those that are None are left out).

    Raises:
        ConfigError: the file cannot be read, or a key is unknown, missing or wrong.
    """
    values = {} if path is None else read_toml(path)
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        return AgentConfig.model_validate(values | given)
    except ValidationError as e:
        where = "the command line" if path is None else str(path)
        raise ConfigError(f"{where}: {explain(e)}", hint="see agents/README.md for the keys an agent knows") from e
