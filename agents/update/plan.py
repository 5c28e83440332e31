"""Whether a bundle fits this box, decided from its manifest before its artifacts are downloaded."""

from collections.abc import Collection
from dataclasses import dataclass

from edgert.bundle import Image
from edgert.errors import RefusedError, StoreError
from edgert.manifest import Artifact, Manifest
from edgert.wire.twin import Assignment

__all__ = ["RESERVE_BYTES", "Fit", "check", "missing"]

RESERVE_BYTES = 16 << 20
"""Room that an update leaves free on the disk."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What the box is.

    Args:
        profiles: names of profiles whose bundles it takes.
        socs: systems on chip whose compiled artifacts it runs.
        free_bytes: on the disk of the store.
        model_bytes: largest artifact it can hold in memory; None = unknown.
    """

    profiles: Collection[str]
    socs: Collection[str]
    free_bytes: int
    model_bytes: int | None = None


def missing(image: Image, here: Collection[str]) -> dict[str, int]:
    """Size in bytes by digest of the blobs of `image` that are not in `here`."""
    return {digest: size for digest, size in image.blobs().items() if digest not in here}


def check(assignment: Assignment, manifest: Manifest, needed_bytes: int, box: Fit) -> None:
    """Refuse what cannot work here.

    Args:
        needed_bytes: still to be downloaded.

    Raises:
        RefusedError: of another model or profile, or compiled for other hardware.
        StoreError: not enough room.
    """
    if manifest.model != assignment.model:
        raise RefusedError(
            f"the bundle assigned to model {assignment.model} is of model {manifest.model}",
            hint="publish it again under the name in its manifest",
        )
    if manifest.profile not in box.profiles:
        raise RefusedError(
            f"the bundle of {manifest.model} {assignment.version} is for profile {manifest.profile}, "
            f"this box is {', '.join(box.profiles)}",
            hint="publish a bundle that was converted for this profile",
        )
    candidates = [artifact for artifact in manifest.artifacts if artifact.role == "infer"]
    if not any(_runs(artifact, box) for artifact in candidates):
        socs = sorted({artifact.compiled_for.soc for artifact in candidates if artifact.compiled_for is not None})
        raise RefusedError(
            f"the bundle of {manifest.model} {assignment.version} was compiled for {', '.join(socs) or 'nothing'}",
            hint="publish a bundle that was compiled for this box",
        )
    if box.model_bytes is not None and all(artifact.size_bytes > box.model_bytes for artifact in candidates):
        raise RefusedError(
            f"every artifact of {manifest.model} {assignment.version} is larger than the {box.model_bytes} bytes "
            "this box can hold",
            hint="publish a smaller model, or a smaller precision",
        )
    if needed_bytes + RESERVE_BYTES > box.free_bytes:
        raise StoreError(
            f"{manifest.model} {assignment.version} needs {needed_bytes} bytes, the disk has {box.free_bytes} free",
            hint=f"make room: {RESERVE_BYTES >> 20} MiB must stay free",
        )


def _runs(artifact: Artifact, box: Fit) -> bool:
    return artifact.compiled_for is None or artifact.compiled_for.soc in box.socs
