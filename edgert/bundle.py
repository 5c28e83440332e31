"""The one value that travels: an OCI image layout in one deterministic, uncompressed tar (suffix ``.edgert``).

::

    oci-layout   index.json   blobs/sha256/<image>   blobs/sha256/<manifest>   blobs/sha256/<artifact> ...

``index.json`` names one OCI image manifest, whose digest is the digest of the Bundle; its *config* is our
:class:`~edgert.manifest.Manifest`, its *layers* are the artifacts. The same blobs in a store make the same Bundle:
only the digests matter, not what carries them.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgert import archive
from edgert.config import explain
from edgert.errors import BundleError, UsageError
from edgert.files import replacing, replacing_folder
from edgert.manifest import Artifact, Digest, Manifest, Role
from edgert.values import canonical_json
from edgert.values import digest as digest_of

__all__ = ["SUFFIX", "Blobs", "Bundle", "Image", "create", "parse_image"]

SUFFIX = ".edgert"
_LAYOUT = canonical_json({"imageLayoutVersion": "1.0.0"})
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_IMAGE_TYPE = "application/vnd.oci.image.manifest.v1+json"
_BUNDLE_TYPE = "application/vnd.edgert.bundle.v1"
_MANIFEST_TYPE = "application/vnd.edgert.manifest.v1+json"
_ARTIFACT_TYPE = "application/vnd.edgert.artifact.v1+"
_BLOB = re.compile(r"blobs/sha256/[0-9a-f]{64}")
_JSON_LIMIT_BYTES = 4 << 20
_HINT = "make one with `edgert convert`"


class _Descriptor(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    media_type: str = Field(alias="mediaType")
    digest: Digest
    size: Annotated[int, Field(ge=0)]


class Image(BaseModel):
    """The OCI image manifest: digest and size of the config and of every layer."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    schema_version: Literal[2] = Field(alias="schemaVersion")
    config: _Descriptor
    layers: tuple[_Descriptor, ...]

    def blobs(self) -> dict[str, int]:
        """Size in bytes of every blob of the bundle except the image itself, by digest."""
        return {part.digest: part.size for part in (self.config, *self.layers)}


class Blobs(Protocol):
    """Where the bytes of a bundle are: an open tar file, a folder, a store."""

    def read(self, digest: str) -> bytes:
        """The bytes with that digest, verified.

        Raises:
            BundleError: they are missing or damaged.
        """
        ...


@dataclass(frozen=True, slots=True)
class Bundle:
    """A manifest and the bytes it names.

    Args:
        digest: of the OCI image manifest; the identity of the bundle.
        manifest: what is inside.
        blobs: where the bytes are.
    """

    digest: str
    manifest: Manifest
    blobs: Blobs

    @classmethod
    def open(cls, path: Path) -> "Bundle":
        """A bundle file, every blob of it verified, a large one piece by piece.

        Raises:
            BundleError: not a bundle, or damaged.
        """
        blobs, index = _read_tar(path)
        blobs.check_sizes(index)
        bundle = cls.load(blobs, index)
        for artifact in bundle.manifest.artifacts:
            blobs.check(artifact.digest)
        return bundle

    @classmethod
    def load(cls, blobs: Blobs, image_digest: str) -> "Bundle":
        """The bundle whose image manifest has that digest; artifacts are verified when they are read.

        Raises:
            BundleError: the image or the manifest is missing, damaged, or they disagree.
        """
        image = parse_image(blobs.read(image_digest))
        if image.config.size > _JSON_LIMIT_BYTES:
            raise BundleError(f"the manifest of bundle {image_digest} claims {image.config.size} bytes", hint=_HINT)
        try:
            manifest = Manifest.model_validate_json(blobs.read(image.config.digest))
        except ValidationError as e:
            raise BundleError(
                f"the manifest of bundle {image_digest} cannot be understood: {explain(e)}",
                hint="it may have been made by a newer EdgeRT",
            ) from e
        named = {artifact.digest: artifact.size_bytes for artifact in manifest.artifacts}
        if named != {layer.digest: layer.size for layer in image.layers}:
            raise BundleError(f"bundle {image_digest}: manifest and layers disagree", hint="fetch the bundle again")
        return cls(image_digest, manifest, blobs)

    def read(self, artifact: Artifact) -> bytes:
        """The verified bytes of an artifact.

        Raises:
            BundleError: they are missing or damaged.
        """
        data = self.blobs.read(artifact.digest)
        if len(data) != artifact.size_bytes:
            raise BundleError(
                f"artifact {artifact.file} has {len(data)} bytes, the manifest says {artifact.size_bytes}"
            )
        return data

    def require(self, role: Role) -> Artifact:
        """The preferred artifact of that role.

        Raises:
            BundleError: the bundle has none.
        """
        artifact = self.manifest.artifact(role)
        if artifact is None:
            raise BundleError(
                f"bundle of {self.manifest.model} has no artifact of role {role!r}",
                hint="`edgert inspect` shows what it holds; `edgert convert --train` adds a training graph",
            )
        return artifact

    def unpack(self, folder: Path) -> list[Path]:
        """Write each artifact to ``folder/<role>/<file>`` and the manifest to ``folder/manifest.json``; all or nothing.

        Args:
            folder: made when it does not exist; empty when it does.

        Raises:
            UsageError: the folder is not empty, or is no folder.
            BundleError: an artifact is missing or damaged, or two have the same place.
            StoreError: the disk is full or read-only.
        """
        places = {f"{artifact.role}/{artifact.file}": artifact for artifact in self.manifest.artifacts}
        if len(places) != len(self.manifest.artifacts):
            raise BundleError(f"bundle of {self.manifest.model}: two artifacts have the same role and file name")
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise UsageError(f"{folder} is not an empty folder", hint="name a folder that does not exist yet")
        with replacing_folder(folder) as temporary:
            text = self.manifest.model_dump_json(indent=2) + "\n"
            (temporary / "manifest.json").write_text(text, encoding="utf-8")
            for place, artifact in places.items():
                (temporary / place).parent.mkdir(exist_ok=True)
                (temporary / place).write_bytes(self.read(artifact))
        return [folder / "manifest.json", *(folder / place for place in places)]


def parse_image(data: bytes) -> Image:
    """The OCI image manifest in `data`.

    Raises:
        BundleError: `data` is something else.
    """
    try:
        image = Image.model_validate_json(data)
    except ValidationError as e:
        raise BundleError(f"not an OCI image manifest: {explain(e)}") from e
    if image.config.media_type != _MANIFEST_TYPE:
        raise BundleError(f"not an EdgeRT bundle: its config is {image.config.media_type}", hint=_HINT)
    return image


def create(path: Path, manifest: Manifest, artifacts: Mapping[str, bytes]) -> str:
    """Write a bundle file; the same manifest and artifacts give the same bytes.

    Args:
        artifacts: the bytes of every artifact the manifest names, by digest.

    Returns:
        The digest of the bundle.

    Raises:
        BundleError: an artifact is missing.
        StoreError: the disk is full or read-only; nothing is left behind.
    """
    config = canonical_json(manifest.model_dump(mode="json"))
    layers = []
    for artifact in manifest.artifacts:
        if digest_of(artifacts.get(artifact.digest, b"")) != artifact.digest:
            raise BundleError(f"the bytes of artifact {artifact.file} are not at hand")
        title = {"org.opencontainers.image.title": artifact.file, "dev.edgert.role": artifact.role}
        layers.append(
            _descriptor(_ARTIFACT_TYPE + artifact.format, artifacts[artifact.digest]) | {"annotations": title}
        )
    image = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": _IMAGE_TYPE,
            "artifactType": _BUNDLE_TYPE,
            "config": _descriptor(_MANIFEST_TYPE, config),
            "layers": layers,
        }
    )
    index = canonical_json(
        {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": [_descriptor(_IMAGE_TYPE, image)]}
    )
    entries = {_blob_name(digest_of(data)): data for data in (config, image, *artifacts.values())}
    with replacing(path) as temporary:
        archive.write(temporary, [("oci-layout", _LAYOUT), ("index.json", index), *sorted(entries.items())])
    return digest_of(image)


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def _blob_name(blob_digest: str) -> str:
    return "blobs/" + blob_digest.replace(":", "/")


@dataclass(frozen=True, slots=True)
class _TarBlobs:
    """Blobs of a tar file, by their place in it; read when asked for, verified every time.

    Sizes are compared before anything is read: what a bundle says about itself must not cost more than it holds.
    """

    path: Path
    places: dict[str, archive.Place]

    def read(self, digest: str) -> bytes:
        data = archive.read(self.path, self._place(digest))
        if digest_of(data) != digest:
            raise self._damaged(digest)
        return data

    def check(self, digest: str) -> None:
        """Verify a blob without holding it.

        Raises:
            BundleError: it is missing or damaged.
        """
        sha256 = hashlib.sha256()
        for piece in archive.pieces(self.path, self._place(digest)):
            sha256.update(piece)
        if f"sha256:{sha256.hexdigest()}" != digest:
            raise self._damaged(digest)

    def check_sizes(self, image_digest: str) -> None:
        """Compare what the image says of every blob with what is there.

        Raises:
            BundleError: a blob is missing, has another size, or the image or the manifest is far too long.
        """
        if self._place(image_digest).size > _JSON_LIMIT_BYTES:
            raise BundleError(f"{self.path}: no image manifest is so long", hint=_HINT)
        image = parse_image(self.read(image_digest))
        if image.config.size > _JSON_LIMIT_BYTES:
            raise BundleError(f"{self.path}: no manifest is so long", hint=_HINT)
        for part in (image.config, *image.layers):
            here = self._place(part.digest).size
            if here != part.size:
                raise BundleError(
                    f"{self.path}: blob {part.digest} has {here} bytes, the image says {part.size}",
                    hint="fetch the file again",
                )

    def _place(self, digest: str) -> archive.Place:
        place = self.places.get(_blob_name(digest))
        if place is None:
            raise BundleError(f"{self.path} lacks blob {digest}", hint="fetch the file again")
        return place

    def _damaged(self, digest: str) -> BundleError:
        return BundleError(f"{self.path}: blob {digest} is damaged", hint="fetch the file again")


def _read_tar(path: Path) -> tuple[_TarBlobs, str]:
    places = archive.places(path, _expected, noun="an EdgeRT bundle", hint=_HINT)
    index = places.get("index.json")
    if index is None or index.size >= _JSON_LIMIT_BYTES:
        raise BundleError(f"{path} is not an EdgeRT bundle: no usable index.json", hint=_HINT)
    try:
        manifests = json.loads(archive.read(path, index))["manifests"]
        (image,) = (_Descriptor.model_validate(row) for row in manifests)
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise BundleError(f"{path} is not an EdgeRT bundle: index.json cannot be understood", hint=_HINT) from e
    return _TarBlobs(path, places), image.digest


def _expected(name: str) -> bool:
    return name in ("oci-layout", "index.json") or _BLOB.fullmatch(name) is not None
