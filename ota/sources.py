"""Sources by digest: what `rebuild` needs to turn new weights into a Bundle. They stay here; no box ever sees one."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgert import archive
from edgert.errors import BundleError, StoreError
from edgert.files import replacing
from edgert.values import digest_file

__all__ = ["Report", "Sources", "beside", "read_report"]

_JSON_LIMIT_BYTES = 16 << 20
_LIMIT_BYTES = 8 << 30
_HINT = "`edgert convert` writes it beside the bundle"


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured when the Source was converted.

    Args:
        bundle: digest of the bundle it tells about.
        metric: ``top1``, or ``cosine`` when the evaluation samples have no labels.
        accuracy: of the chosen candidate.
    """

    bundle: str
    metric: str
    accuracy: float | None


class Sources:
    """A folder of Source files.

    Args:
        folder: made when it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, path: Path) -> str:
        """Copy a Source here; returns its digest.

        Raises:
            BundleError: it is not a Source.
            StoreError: the disk is full or read-only.
        """
        read_report(path)
        digest = digest_file(path)
        target = self._path(digest)
        if not target.is_file():
            with replacing(target, mode=0o600) as temporary:
                _copy(path, temporary)
                if digest_file(temporary) != digest:
                    raise BundleError(f"{path} changed while it was read", hint="try again when nobody writes it")
        return digest

    def get(self, digest: str) -> Path:
        """The file, verified again.

        Raises:
            StoreError: missing or damaged.
        """
        path = self._path(digest)
        if not path.is_file():
            raise StoreError(f"the source {digest} is not kept here", hint="publish the bundle with its source")
        if digest_file(path) != digest:
            raise StoreError(f"the source {digest} is damaged", hint="restore the fleet's home from a backup")
        return path

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest.removeprefix('sha256:')}.tar"


def beside(bundle: Path) -> Path:
    """Where `edgert convert` puts the Source of a bundle file: ``m.source.tar`` beside ``m.edgert``."""
    return bundle.with_name(f"{bundle.stem}.source.tar")


def read_report(path: Path) -> Report:
    """What the report inside a Source says.

    Raises:
        BundleError: not a Source, or one with links, sparse files, the same entry twice or too many bytes.
    """
    found = archive.places(path, _plain, noun="a source", hint=_HINT, limit_bytes=_LIMIT_BYTES)
    place = found.get("report.json")
    if place is None or place.size > _JSON_LIMIT_BYTES:
        raise BundleError(f"{path} is not a source: no usable report.json", hint=_HINT)
    try:
        report: dict[str, Any] = json.loads(archive.read(path, place))
        chosen = [row for row in report["candidates"] if row["chosen"]]
        accuracy = float(chosen[0]["accuracy"]) if chosen and chosen[0]["accuracy"] is not None else None
        return Report(str(report["bundle"]), str(report["metric"]), accuracy)
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise BundleError(f"{path} is not a source: {e}", hint=_HINT) from e


def _plain(name: str) -> bool:
    return name == Path(name).name


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as e:
        raise StoreError(f"cannot copy {source}: {e.strerror}", hint="is there room for it in the fleet's home?") from e
