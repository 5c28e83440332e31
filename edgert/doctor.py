"""Whether this installation can work, and what it lacks: the checks of ``edgert doctor``."""

import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from edgert import __version__, host, plugins, profiles, trial
from edgert.errors import FaultError

__all__ = ["Check", "agents_package", "backends", "examine"]

_BROKER_FOLDERS = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/sbin"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Args:
        name: what was looked at.
        ok: it is as it should be.
        needed: the installation cannot do its work without it.
        found: one line.
        hint: what to do when it is not ok.
    """

    name: str
    ok: bool
    needed: bool
    found: str
    hint: str = ""


def examine() -> Iterator[Check]:
    """Every check, one at a time: the probes of the backends take a moment."""
    machine = host.detect()
    fitting = next((row.name for row in profiles.match(machine) if row.fits), "none")
    yield Check("edgert", True, True, f"{__version__} on Python {platform.python_version()}, numpy {_version('numpy')}")
    size = f"{machine.cores} cores, {machine.memory_bytes >> 20} MiB"
    yield Check("machine", True, False, f"{machine.arch}, {size}, fits profile {fitting}")
    yield from backends()
    yield _two_tflite()
    yield from agents_package()
    yield from _commands()
    yield _broker()


def backends() -> Iterator[Check]:
    """One check per backend, probed in a child process, and whether any of them works."""
    works = []
    for name in plugins.names("edgert.backends"):
        try:
            found = trial.probe(name)
        except FaultError as e:
            yield Check(f"backend {name}", False, True, e.message, e.hint)
            continue
        if found.available:
            works.append(name)
            yield Check(f"backend {name}", True, False, found.version)
        else:
            broken = bool(found.version)  # a version without a working runtime: it is installed, and it is broken
            yield Check(f"backend {name}", False, broken, " ".join((found.version, found.reason)).strip())
    yield Check(
        "backends",
        bool(works),
        True,
        f"{', '.join(works) or 'none'} can open artifacts",
        "install onnxruntime, or edgert[litert], or edgert[tflite]",
    )


def _two_tflite() -> Check:
    installed = [name for name in ("ai-edge-litert", "tflite-runtime") if _version(name)]
    return Check(
        "TFLite runtimes",
        len(installed) < 2,
        False,
        " and ".join(installed) or "none",
        "they need different numpy: keep one of them, ai-edge-litert where it can be had",
    )


def agents_package() -> Iterator[Check]:
    """Whether another distribution's package ``agents`` is imported in the place of EdgeRT's, or mixed with it."""
    hint = "give EdgeRT a virtual environment of its own"
    ours = Path(__file__).resolve().parent.parent
    others = sorted(set(metadata.packages_distributions().get("agents", [])) - {"edgert"})
    if others:
        yield Check("package agents", False, True, f"also installed by {', '.join(others)}", hint)
        return
    spec = util.find_spec("agents")
    if spec is None:
        yield Check("package agents", True, False, "not installed")
        return
    places = [Path(place).resolve().parent for place in spec.submodule_search_locations or ()]
    if places != [ours]:
        found = ", ".join(str(place) for place in places) or str(spec.origin)
        yield Check("package agents", False, True, f"another one comes first: {found}", hint)
    else:
        yield Check("package agents", True, False, "EdgeRT's own")


def _commands() -> Iterator[Check]:
    for entry in plugins.entry_points("edgert.commands"):
        try:
            entry.load()
        except ImportError as e:
            yield Check(f"verbs of {entry.name}", False, False, str(e), "install the extra that brings it")
        else:
            yield Check(f"verbs of {entry.name}", True, False, "installed")


def _broker() -> Check:
    path = shutil.which("mosquitto") or shutil.which("mosquitto", path=_BROKER_FOLDERS)
    return Check("mosquitto", path is not None, False, path or "not found", "a fleet's server needs it; a box does not")


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
