"""What a rebuild needs, in one deterministic tar beside the bundle (``m.source.tar``); it never travels to a box.

::

    recipe.json  lock.json  model.onnx  report.json  [calibrate.npz]  [evaluate.npz]
"""

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from converters.recipe import Lock, Recipe
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
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in parts.items():
            if data is not None:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                info.mode = 0o644
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def open_source(path: Path) -> Source:
    """The parts of a source file; nothing is ever extracted to a path that the tar names.

    Raises:
        BundleError: missing, damaged, no source, or its samples are not those of its recipe.
    """
    parts = _read(path)
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


def _read(path: Path) -> dict[str, bytes]:
    parts: dict[str, bytes] = {}
    total = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                total += info.size
                known = info.name in _NEEDED or info.name in _OPTIONAL
                if not info.isreg() or not known or info.name in parts or total > _LIMIT_BYTES:
                    raise BundleError(f"{path} is not a source: unexpected entry {info.name[:80]!r}", hint=_HINT)
                stream = tar.extractfile(info)
                parts[info.name] = b"" if stream is None else stream.read()
                if len(parts[info.name]) != info.size:
                    raise BundleError(f"{path} is truncated", hint="copy it again")
    except FileNotFoundError as e:
        raise BundleError(f"there is no file {path}", hint="check the path") from e
    except (OSError, tarfile.TarError, ValueError, EOFError) as e:
        raise BundleError(f"{path} is not a source: {e}", hint=_HINT) from e
    return parts
