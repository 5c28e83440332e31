"""What a kind of box can do: `Profile`, read from TOML files that may extend each other.

EdgeRT's own profiles are the files of the package `firmware_profiles`; a path to any other file works as well.
"""

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from edgert.config import explain, read_toml
from edgert.errors import ConfigError, UsageError
from edgert.host import VNNI, Host
from edgert.values import is_name

__all__ = ["Limits", "Match", "Profile", "Speed", "load", "match", "names"]

_PACKAGE = "firmware_profiles"
_SUFFIX = ".toml"
_MEMORY_SLACK = 0.85  # the kernel and the firmware keep a part of what is built in


class _Written(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Written):
    """What a box allows.

    Args:
        model_bytes: largest artifact.
        trial_memory_bytes: resident memory of a trial child, interpreter and runtime included.
    """

    model_bytes: Annotated[int, Field(gt=0)] | None = None
    trial_memory_bytes: Annotated[int, Field(gt=0)] | None = None


class Speed(_Written):
    """A claim about speed.

    Args:
        claim: what is compared, in words.
        ratio: of CPU time to that of the first backend's float32; None = unknown.
        measured: by the authors on such a box; false = taken from elsewhere or expected.
    """

    claim: str
    measured: bool
    ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


def _checked_name(name: str) -> str:
    if not is_name(name):
        raise ValueError("the file's name may hold lower-case letters, digits, '.', '_' and '-'")
    return name


class Profile(_Written):
    """What a kind of box can do; what is unknown is left out.

    Args:
        arch: as ``uname -m`` says, or ``any``.
        cores: logical cores.
        memory_bytes: what is built in.
        isa: CPU features that every such box has, as the kernel names them.
        boards: device-tree names that identify the box.
        accelerators: names of accelerators; what drives them is named in `backends`.
        backends: in order of preference.
        precisions: that its runtimes execute well, in order of preference.
    """

    name: Annotated[str, AfterValidator(_checked_name)]
    description: str
    arch: Literal["any", "x86_64", "aarch64", "armv7l"] = "any"
    cores: Annotated[int, Field(gt=0)] | None = None
    memory_bytes: Annotated[int, Field(gt=0)] | None = None
    isa: tuple[str, ...] = ()
    boards: tuple[str, ...] = ()
    accelerators: tuple[str, ...] = ()
    backends: Annotated[tuple[str, ...], Field(min_length=1)] = ("onnxruntime",)
    precisions: Annotated[tuple[Literal["int8", "float32"], ...], Field(min_length=1)] = ("int8", "float32")
    limits: Limits = Limits()
    speed: tuple[Speed, ...] = ()

    @property
    def vnni(self) -> bool:
        """Whether every such box sums 8-bit products in 32 bits in one instruction."""
        return bool(VNNI & set(self.isa))

    @property
    def reduce_range(self) -> bool:
        """Whether 8-bit weights must keep to 7 bits: x86 without VNNI adds two products in 16 bits and saturates."""
        return not self.vnni and self.arch not in ("aarch64", "armv7l")


class Match(_Written):
    """How well a profile fits a machine; `reasons` say what it promises and the machine lacks."""

    name: str
    fits: bool
    reasons: tuple[str, ...]


def names() -> list[str]:
    """The profiles that EdgeRT brings, sorted."""
    folder = resources.files(_PACKAGE)
    return sorted(entry.name.removesuffix(_SUFFIX) for entry in folder.iterdir() if entry.name.endswith(_SUFFIX))


def load(name_or_path: str) -> Profile:
    """A profile that EdgeRT brings, by name, or one in a file.

    Args:
        name_or_path: a path ends in ``.toml`` or holds a ``/``.

    Raises:
        UsageError: there is no such profile.
        ConfigError: the file has a wrong or unknown key, or extends itself.
    """
    is_path = name_or_path.endswith(_SUFFIX) or "/" in name_or_path
    name = Path(name_or_path).name.removesuffix(_SUFFIX) if is_path else name_or_path
    table = _resolved(name_or_path, ())
    if "name" in table:
        raise ConfigError(f"profile {name}: name: the file's name is the name", hint="remove the key `name`")
    try:
        return Profile.model_validate(table | {"name": name})
    except ValidationError as e:
        raise ConfigError(f"profile {name}: {explain(e)}", hint=_known_keys(e)) from e


def match(host: Host) -> list[Match]:
    """Every profile that EdgeRT brings: those that fit the machine first, the most specific of them at the top."""
    profiles = [load(name) for name in names()]
    found = [(profile, tuple(_lacks(profile, host))) for profile in profiles]
    found.sort(key=lambda row: (bool(row[1]), *(-score for score in _specific(row[0])), row[0].name))
    return [Match(name=profile.name, fits=not reasons, reasons=reasons) for profile, reasons in found]


def _lacks(profile: Profile, host: Host) -> list[str]:
    reasons = []
    if profile.arch not in ("any", host.arch):
        reasons.append(f"it is for {profile.arch}, this is {host.arch}")
    missing = sorted(set(profile.isa) - host.features)
    if missing:
        reasons.append(f"the CPU has no {', '.join(missing)}")
    if profile.boards and not set(profile.boards) & set(host.boards):
        reasons.append(f"it is for the board {profile.boards[0]}")
    if profile.accelerators and not profile.boards:
        reasons.append(f"nothing here recognises {', '.join(profile.accelerators)}")
    if profile.cores is not None and host.cores < profile.cores:
        reasons.append(f"it promises {profile.cores} cores, here are {host.cores}")
    if profile.memory_bytes is not None:
        if host.memory_bytes < profile.memory_bytes * _MEMORY_SLACK:
            reasons.append(f"it promises {profile.memory_bytes >> 20} MiB, here are {host.memory_bytes >> 20}")
        elif not profile.boards and host.memory_bytes > 2 * profile.memory_bytes:
            reasons.append(f"it is for boxes with {profile.memory_bytes >> 20} MiB, here are {host.memory_bytes >> 20}")
    return reasons


def _specific(profile: Profile) -> tuple[int, int, int, int]:
    return (len(profile.boards), int(profile.memory_bytes is not None), len(profile.isa), int(profile.arch != "any"))


def _resolved(name_or_path: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """The table of a profile laid over those it extends; sub-tables are merged by key, lists are replaced."""
    if name_or_path in seen:
        raise ConfigError(f"profile {seen[0]} extends itself: {' -> '.join((*seen, name_or_path))}")
    table: dict[str, Any] = dict(read_toml(_find(name_or_path)))
    base = table.pop("extends", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise ConfigError(f"profile {name_or_path}: extends: must be the name of one profile")
    if "/" not in base and base.endswith(_SUFFIX):
        base = str(Path(name_or_path).parent / base)
    below = _resolved(base, (*seen, name_or_path))
    return below | {key: _laid_over(below.get(key), value) for key, value in table.items()}


def _laid_over(below: object, value: object) -> object:
    return {**below, **value} if isinstance(below, Mapping) and isinstance(value, Mapping) else value


def _find(name_or_path: str) -> Path:
    if name_or_path.endswith(_SUFFIX) or "/" in name_or_path:
        return Path(name_or_path)
    if name_or_path not in names():
        close = difflib.get_close_matches(name_or_path, names(), n=1)
        raise UsageError(
            f"there is no profile {name_or_path!r}",
            hint=(f"did you mean {close[0]}? " if close else "") + f"known: {', '.join(names())}",
        )
    return Path(str(resources.files(_PACKAGE) / (name_or_path + _SUFFIX)))


def _known_keys(error: ValidationError) -> str:
    models: dict[str, type[BaseModel]] = {"limits": Limits, "speed": Speed}
    (first, *_) = error.errors()
    model = models.get(str(first["loc"][0]), Profile) if len(first["loc"]) > 1 else Profile
    known = [key for key in model.model_fields if key != "name"]
    return f"known keys{' of ' + str(first['loc'][0]) if model is not Profile else ''}: {', '.join(known)}" + (
        ", extends" if model is Profile else ""
    )
