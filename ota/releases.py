"""From bundle files to a signed release: everything kept first, signed last."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edgert.bundle import Bundle
from edgert.errors import BundleError, UsageError
from edgert.wire.fleet import bundle_target
from ota.config import locked
from ota.fleet import Fleet
from ota.sources import Report, beside, read_report
from ota.store import BundleRow, ReleaseRow, Session, releases

__all__ = ["Part", "Written", "parts_of", "publish"]

Written: TypeAlias = Callable[[Session, ReleaseRow], None]
"""Called in the transaction that writes a release down: when it fails there is no release."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a release has for one profile: a bundle file that is to be published.

    Args:
        bundle: opened and verified.
        source: its Source file, or None.
        report: what the Source says was measured, or None.
    """

    bundle: Bundle
    source: Path | None
    report: Report | None


def parts_of(bundles: Sequence[Path], sources: Sequence[Path], *, without_source: bool) -> list[Part]:
    """The files of one release, checked against each other.

    Args:
        bundles: one per profile.
        sources: one per bundle, in the same order; empty = each beside its bundle.
        without_source: publish without Sources: nothing can be rebuilt from this release.

    Raises:
        UsageError: nothing to publish, several models, a profile twice, or a missing source.
        BundleError: a file is damaged, or a source belongs to another bundle.
    """
    if not bundles or (sources and len(sources) != len(bundles)):
        raise UsageError(
            f"{len(bundles)} bundles and {len(sources)} sources are given",
            hint="give at least one bundle, and one source for each of them or none at all",
        )
    found = []
    for index, path in enumerate(bundles):
        bundle = Bundle.open(path)
        if without_source:
            found.append(Part(bundle, None, None))
            continue
        source = sources[index] if sources else beside(path)
        if not source.is_file():
            raise UsageError(
                f"there is no source {source} for bundle {path}",
                hint="name it with --source, or publish with --no-source: then the model cannot be rebuilt",
            )
        report = read_report(source)
        if report.bundle != bundle.digest:
            raise BundleError(
                f"source {source} belongs to bundle {report.bundle}, not to {path}",
                hint="`edgert convert` writes both at once: keep them together, or name the right one with --source",
            )
        found.append(Part(bundle, source, report))
    _check_together(found)
    return found


def publish(fleet: Fleet, parts: Sequence[Part], *, job: str = "", written: Written | None = None) -> ReleaseRow:
    """Keep the blobs and Sources, sign the targets, and only then write the release down.

    Interrupted anywhere, the fleet goes on as before and the same call can be made again.

    Args:
        job: the federated job it came from.
        written: what else belongs to the same transaction.

    Raises:
        UsageError: it is the newest release already.
        StoreError: the disk is full or read-only.
    """
    model = parts[0].bundle.manifest.model
    with locked(fleet.home.root, "publish"):
        with fleet.database.read() as session:
            version = releases.latest_version(session, model) + 1
            _check_new(session, model, version - 1, parts)
        rows, contents = [], {}
        for part in parts:
            fleet.store.ingest(part.bundle)
            row = _row(fleet, part, version)
            contents[row.target] = part.bundle.blobs.read(part.bundle.digest)
            rows.append(row)
        fleet.repository.add(contents)
        with fleet.database.write() as session:
            release = ReleaseRow(model=model, version=version, created=fleet.clock.now(), job=job, bundles=rows)
            session.add(release)
            if written is not None:
                session.flush()
                written(session, release)
        return release


def _row(fleet: Fleet, part: Part, version: int) -> BundleRow:
    manifest = part.bundle.manifest
    return BundleRow(
        profile=manifest.profile,
        digest=part.bundle.digest,
        size_bytes=len(part.bundle.blobs.read(part.bundle.digest)),
        target=bundle_target(manifest.model, version, manifest.profile),
        source=None if part.source is None else fleet.sources.keep(part.source),
        metric="" if part.report is None else part.report.metric,
        accuracy=None if part.report is None else part.report.accuracy,
    )


def _check_new(session: Session, model: str, latest: int, parts: Sequence[Part]) -> None:
    if not latest:
        return
    known = {row.profile: row.digest for row in releases.get(session, model, latest).bundles}
    if known == {part.bundle.manifest.profile: part.bundle.digest for part in parts}:
        raise UsageError(
            f"these bundles are published already, as version {latest} of {model}",
            hint=f"roll it out: edgert ota rollout HOME --model {model}",
        )


def _check_together(parts: Sequence[Part]) -> None:
    models = {part.bundle.manifest.model for part in parts}
    profiles = [part.bundle.manifest.profile for part in parts]
    if len(models) > 1:
        raise UsageError(
            f"a release is of one model, these bundles are of {', '.join(sorted(models))}",
            hint="publish each model by itself",
        )
    if len(set(profiles)) < len(profiles):
        raise UsageError(
            f"a release has one bundle per profile, these are for {', '.join(profiles)}",
            hint="leave one of those out",
        )
