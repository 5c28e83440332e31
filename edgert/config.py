"""One frozen settings model per process, read once at start from a TOML file."""

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from edgert.errors import ConfigError

__all__ = ["explain", "read", "read_toml"]

Model = TypeVar("Model", bound=BaseModel)


def read_toml(path: Path) -> dict[str, object]:
    """The tables of a TOML file.

    Raises:
        ConfigError: the file is missing or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise ConfigError(f"there is no file {path}", hint="check the path") from e
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise ConfigError(f"{path} is not a readable TOML file: {e}", hint="mend it at the place named") from e


def read(model: type[Model], path: Path) -> Model:
    """The settings in `path`, checked against `model`.

    Raises:
        ConfigError: the file is missing, is not TOML, or has a wrong or unknown key.
    """
    try:
        return model.model_validate(read_toml(path))
    except ValidationError as e:
        raise ConfigError(f"{path}: {explain(e)}", hint="see the README of the package for the keys it knows") from e


def explain(error: ValidationError) -> str:
    """The findings of pydantic as one line: ``key: what is wrong; key: ...``."""
    findings = [f"{'.'.join(str(part) for part in row['loc']) or 'file'}: {row['msg']}" for row in error.errors()]
    return "; ".join(findings)
