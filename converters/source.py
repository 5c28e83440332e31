"""What a rebuild needs, in one deterministic tar beside the bundle (``m.source.tar``); it never travels to a box.

::

    recipe.json  lock.json  model.onnx  report.json  [calibrate.npz]  [evaluate.npz]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from converters.recipe import Lock, Recipe
from edgert import archive
from edgert.config import explain
from edgert.errors import BundleError
from edgert.values import digest

__all__ = ["SUFFIX", "Source", "open_source", "pack"]

SUFFIX = ".source.tar"
_NEEDED = ("recipe.json", "lock.json", "model.onnx", "report.json")
_OPTIONAL = ("calibrate.npz", "evaluate.npz")
_LIMIT_BYTES = 8 << 30
_HINT = "`edgert convert` writes a source beside each bundle"


@dataclass(frozen=True, slots=True)
class Source:
    """The parts of a source.

    Args:
        recipe: what was asked for.
        lock: what was chosen.
        model: the imported float graph, ONNX.
        report: what was measured, JSON.
        calibrate, evaluate: samples, ``.npz``, or None.
    """

    recipe: Recipe
    lock: Lock
    model: bytes
    report: bytes
    calibrate: bytes | None = None
    evaluate: bytes | None = None


def pack(source: Source) -> bytes:
    """The tar file; the same parts give the same bytes."""
    parts = {
        "recipe.json": source.recipe.model_dump_json(indent=2).encode() + b"\n",
        "lock.json": source.lock.model_dump_json(indent=2).encode() + b"\n",
        "model.onnx": source.model,
        "calibrate.npz": source.calibrate,
        "evaluate.npz": source.evaluate,
        "report.json": source.report,
    }
    return archive.pack((name, data) for name, data in parts.items() if data is not None)


def open_source(path: Path) -> Source:
    """The parts of a source file; nothing is ever extracted to a path that the tar names.

    Raises:
        BundleError: missing, damaged, no source, or its samples are not those of its recipe.
    """
    places = archive.places(
        path, (*_NEEDED, *_OPTIONAL).__contains__, noun="a source", hint=_HINT, limit_bytes=_LIMIT_BYTES
    )
    parts = {name: archive.read(path, place) for name, place in places.items()}
    missing = [name for name in _NEEDED if name not in parts]
    if missing:
        raise BundleError(f"{path} is not a source: it lacks {', '.join(missing)}", hint=_HINT)
    try:
        recipe = Recipe.model_validate_json(parts["recipe.json"])
        lock = Lock.model_validate_json(parts["lock.json"])
    except ValidationError as e:
        raise BundleError(f"{path} is not a usable source: {explain(e)}", hint=_HINT) from e
    source = Source(
        recipe, lock, parts["model.onnx"], parts["report.json"], parts.get("calibrate.npz"), parts.get("evaluate.npz")
    )
    _check_samples(path, source)
    return source


def _check_samples(path: Path, source: Source) -> None:
    wanted: Mapping[str, str | None] = {"calibrate": source.recipe.calibrate, "evaluate": source.recipe.evaluate}
    for name, data in (("calibrate", source.calibrate), ("evaluate", source.evaluate)):
        if (None if data is None else digest(data)) != wanted[name]:
            raise BundleError(f"{path}: the samples {name}.npz are not those the recipe names", hint=_HINT)
