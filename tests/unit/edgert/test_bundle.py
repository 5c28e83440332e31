"""Bundles: the same bytes every time, and every damage noticed."""

import io
import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from edgert.bundle import Bundle, create
from edgert.errors import BundleError, StoreError, UsageError
from edgert.manifest import Artifact, Manifest
from edgert.store import Store
from edgert.values import canonical_json, digest
from tests.support.disk import full_disk
from tests.support.models import bundle_file

Entries = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return bundle_file(tmp_path / "m.edgert")


def entries(path: Path) -> Entries:
    with tarfile.open(path) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


def rewritten(path: Path, rows: Entries) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in rows:
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    return path


def entry(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def image_of(path: Path) -> dict[str, Any]:
    digest_ = Bundle.open(path).digest
    rows = {info.name: data for info, data in entries(path)}
    return dict(json.loads(rows["blobs/" + digest_.replace(":", "/")]))


def with_image(path: Path, image: object) -> Path:
    """The bundle with another image manifest in its index."""
    data = canonical_json(image)
    index = {"schemaVersion": 2, "manifests": [{"mediaType": "x", "digest": digest(data), "size": len(data)}]}
    rows = [(info, old) for info, old in entries(path) if info.name != "index.json"]
    name = "blobs/" + digest(data).replace(":", "/")
    return rewritten(path, [*rows, (entry("index.json"), canonical_json(index)), (entry(name), data)])


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    a, b = bundle_file(tmp_path / "a.edgert"), bundle_file(tmp_path / "elsewhere" / "b.edgert")
    assert a.read_bytes() == b.read_bytes()
    assert Bundle.open(a).digest == Bundle.open(b).digest


def test_other_content_gives_another_digest(tmp_path: Path, file: Path) -> None:
    assert Bundle.open(file).digest != Bundle.open(bundle_file(tmp_path / "b.edgert", tolerance=0.5)).digest


def test_a_bundle_is_an_oci_image_layout(file: Path) -> None:
    rows = {info.name: data for info, data in entries(file)}
    assert json.loads(rows["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (image,) = json.loads(rows["index.json"])["manifests"]
    assert image["digest"] == Bundle.open(file).digest
    assert all(name.startswith("blobs/sha256/") for name in rows if name not in ("oci-layout", "index.json"))
    assert all(digest(data).endswith(name.rpartition("/")[2]) for name, data in rows.items() if "/" in name)


def test_every_artifact_is_read_verified(file: Path) -> None:
    bundle = Bundle.open(file)
    assert [digest(bundle.read(artifact)) for artifact in bundle.manifest.artifacts] == [
        artifact.digest for artifact in bundle.manifest.artifacts
    ]
    assert bundle.require("golden").file == "golden.npz"
    with pytest.raises(BundleError, match="no artifact of role 'train'"):
        bundle.require("train")


def test_a_damaged_byte_is_refused_or_changes_nothing(tmp_path: Path, file: Path) -> None:
    whole, good = file.read_bytes(), Bundle.open(file)
    damaged = tmp_path / "damaged.edgert"
    noticed = 0
    for place in range(0, len(whole), 23):
        data = bytearray(whole)
        data[place] ^= 0x10
        damaged.write_bytes(data)
        try:
            found = Bundle.open(damaged)
        except BundleError:
            noticed += 1
        else:
            assert (found.digest, found.manifest) == (good.digest, good.manifest)
    assert noticed > 100


@pytest.mark.parametrize("part", [0, 1, 100, 512, 1024, 3000, 5000])
def test_a_truncated_bundle_is_refused(file: Path, part: int) -> None:
    file.write_bytes(file.read_bytes()[:part])
    with pytest.raises(BundleError):
        Bundle.open(file)


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n", b"\x1f\x8b" + bytes(600), b"PK\x03\x04" + bytes(600)]
)
def test_another_kind_of_file_is_refused_with_a_hint(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(BundleError, match="not an EdgeRT bundle") as caught:
        Bundle.open(file)
    assert caught.value.hint


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no file"):
        Bundle.open(tmp_path / "none.edgert")
    with pytest.raises(BundleError, match="not an EdgeRT bundle"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(
    "extra",
    [
        entry("../../etc/passwd"),
        entry("/etc/passwd"),
        entry("notes.txt"),
        entry("blobs/sha256/short"),
        entry("blobs/sha256/" + "a" * 64, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("blobs/sha256/" + "a" * 64, type=tarfile.LNKTYPE, linkname="index.json"),
        entry("blobs/sha256/" + "a" * 64, type=tarfile.FIFOTYPE),
        entry("blobs/sha256/" + "a" * 64, type=tarfile.DIRTYPE),
    ],
    ids=lambda info: f"{info.type!r} {info.name[:20]}",
)
def test_an_unexpected_entry_is_refused(file: Path, extra: tarfile.TarInfo) -> None:
    rewritten(file, [*entries(file), (extra, b"")])
    with pytest.raises(BundleError, match="unexpected entry"):
        Bundle.open(file)


def test_the_same_name_twice_is_refused(file: Path) -> None:
    rows = entries(file)
    rewritten(file, [*rows, rows[-1]])
    with pytest.raises(BundleError, match="unexpected entry"):
        Bundle.open(file)


def test_a_missing_blob_is_named(file: Path) -> None:
    gone = Bundle.open(file).require("infer").digest
    rewritten(file, [row for row in entries(file) if not row[0].name.endswith(gone[7:])])
    with pytest.raises(BundleError, match=f"lacks blob {gone}"):
        Bundle.open(file)


def test_layers_that_differ_from_the_manifest_are_refused(file: Path) -> None:
    image = image_of(file)
    with_image(file, image | {"layers": image["layers"][:1]})
    with pytest.raises(BundleError, match="disagree"):
        Bundle.open(file)


def test_a_layer_that_the_image_does_not_name_is_refused(file: Path) -> None:
    image = image_of(file)
    del image["layers"][0]
    with_image(file, image)
    with pytest.raises(BundleError, match="disagree"):
        Bundle.open(file)


@pytest.mark.parametrize("image", [{}, [], {"schemaVersion": 1, "config": {}, "layers": []}, "text"])
def test_an_image_that_is_none_is_refused(file: Path, image: object) -> None:
    with_image(file, image)
    with pytest.raises(BundleError, match="not an OCI image manifest"):
        Bundle.open(file)


def test_a_container_image_is_not_mistaken_for_a_bundle(file: Path) -> None:
    image = image_of(file)
    image["config"]["mediaType"] = "application/vnd.oci.image.config.v1+json"
    with_image(file, image)
    with pytest.raises(BundleError, match="not an EdgeRT bundle"):
        Bundle.open(file)


def test_a_manifest_of_a_newer_format_is_refused_with_a_hint(file: Path) -> None:
    bundle, image = Bundle.open(file), image_of(file)
    config = canonical_json(bundle.manifest.model_dump(mode="json") | {"format": 2})
    image["config"] |= {"digest": digest(config), "size": len(config)}
    rewritten(file, [*entries(file), (entry("blobs/" + digest(config).replace(":", "/")), config)])
    with_image(file, image)
    with pytest.raises(BundleError, match="format") as caught:
        Bundle.open(file)
    assert "newer" in caught.value.hint


def test_an_index_with_two_images_is_refused(file: Path) -> None:
    rows = {info.name: data for info, data in entries(file)}
    index = json.loads(rows["index.json"])
    index["manifests"] *= 2
    rest = [row for row in entries(file) if row[0].name != "index.json"]
    rewritten(file, [*rest, (entry("index.json"), canonical_json(index))])
    with pytest.raises(BundleError, match=r"index\.json"):
        Bundle.open(file)


def test_bytes_that_are_not_at_hand_make_no_bundle(tmp_path: Path, file: Path) -> None:
    manifest = Bundle.open(file).manifest
    with pytest.raises(BundleError, match="not at hand"):
        create(tmp_path / "new.edgert", manifest, {})
    assert not (tmp_path / "new.edgert").exists()


def test_a_full_disk_makes_no_bundle(tmp_path: Path, file: Path) -> None:
    bundle = Bundle.open(file)
    parts = {artifact.digest: bundle.read(artifact) for artifact in bundle.manifest.artifacts}
    with full_disk(2000), pytest.raises(StoreError, match="cannot write"):
        create(tmp_path / "new.edgert", bundle.manifest, parts)
    assert list(tmp_path.iterdir()) == [file]


def test_unpacking_writes_each_artifact_under_its_role(tmp_path: Path, file: Path) -> None:
    bundle = Bundle.open(file)
    written = bundle.unpack(tmp_path / "out")
    assert [str(path.relative_to(tmp_path / "out")) for path in written] == [
        "manifest.json",
        "infer/model.onnx",
        "golden/golden.npz",
    ]
    assert digest((tmp_path / "out/infer/model.onnx").read_bytes()) == bundle.require("infer").digest
    assert Manifest.model_validate_json(written[0].read_bytes()) == bundle.manifest


def test_unpacking_touches_no_folder_that_holds_something(tmp_path: Path, file: Path) -> None:
    with pytest.raises(UsageError, match="not an empty folder"):
        Bundle.open(file).unpack(tmp_path)
    with pytest.raises(UsageError, match="not an empty folder"):
        Bundle.open(file).unpack(file)
    assert list(tmp_path.iterdir()) == [file]


def test_unpacking_a_blob_that_was_damaged_meanwhile_leaves_nothing(tmp_path: Path, file: Path) -> None:
    bundle = Bundle.open(file)
    data = file.read_bytes()
    place = data.find(bundle.read(bundle.require("golden")))
    file.write_bytes(data[:place] + b"?" + data[place + 1 :])
    with pytest.raises(BundleError, match="damaged"):
        bundle.unpack(tmp_path / "out")
    assert list(tmp_path.iterdir()) == [file]


def test_unpacking_two_artifacts_into_one_place_is_refused(tmp_path: Path) -> None:
    file = bundle_file(tmp_path / "m.edgert")
    bundle = Bundle.open(file)
    first = bundle.require("infer")
    twin = Artifact.model_validate(first.model_dump() | {"digest": digest(b"twin"), "size_bytes": 4})
    manifest = bundle.manifest.model_copy(update={"artifacts": (*bundle.manifest.artifacts, twin)})
    parts = {one.digest: bundle.read(one) for one in bundle.manifest.artifacts} | {twin.digest: b"twin"}
    create(file, manifest, parts)
    with pytest.raises(BundleError, match="same role and file"):
        Bundle.open(file).unpack(tmp_path / "out")


def test_a_store_gives_the_same_bundle(tmp_path: Path, file: Path) -> None:
    store = Store(tmp_path / "store")
    bundle = Bundle.open(file)
    store.ingest(bundle)
    assert Bundle.load(store, bundle.digest).manifest == bundle.manifest


def sparse(path: Path, size: int) -> Path:
    """A file whose index names an image of `size` bytes; they are a hole."""
    name = "a" * 64
    row = {"mediaType": "x", "digest": f"sha256:{name}", "size": size}
    index = canonical_json({"schemaVersion": 2, "manifests": [row]})
    with path.open("wb") as file:
        file.write(entry("index.json", size=len(index)).tobuf(tarfile.GNU_FORMAT))
        file.write(index.ljust(-(-len(index) // 512) * 512, b"\0"))
        file.write(entry(f"blobs/sha256/{name}", size=size).tobuf(tarfile.GNU_FORMAT))
        file.truncate(file.tell() + size + 1024)
    return path


@pytest.mark.parametrize("size", [(4 << 20) + 1, 3 << 30, 1 << 40])
def test_an_image_of_gigabytes_is_refused_before_it_is_read(size: int, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no image manifest is so long"):
        Bundle.open(sparse(tmp_path / "m.edgert", size))


@pytest.mark.parametrize("index", [b"[" * 100_000, b'{"manifests":' + b"[" * 100_000])
def test_an_index_nested_without_end_is_refused(index: bytes, file: Path) -> None:
    rows = [(info, data) for info, data in entries(file) if info.name != "index.json"]
    with pytest.raises(BundleError, match=r"index\.json cannot be understood"):
        Bundle.open(rewritten(file, [(entry("index.json"), index), *rows]))


@pytest.mark.parametrize("part", ["config", "layers"])
def test_sizes_in_the_image_must_be_those_in_the_file(part: str, file: Path) -> None:
    image = image_of(file)
    row = image["config"] if part == "config" else image["layers"][0]
    row["size"] += 1
    with pytest.raises(BundleError, match="the image says"):
        Bundle.open(with_image(file, image))


def test_a_manifest_of_more_than_4_mib_is_refused(file: Path) -> None:
    image = image_of(file)
    image["config"]["size"] = (4 << 20) + 1
    with pytest.raises(BundleError, match="no manifest is so long"):
        Bundle.open(with_image(file, image))


def test_a_large_artifact_is_verified_without_being_held(tmp_path: Path) -> None:
    weights = bytes(32 << 20)
    artifact = Artifact(role="weights", format="npz", file="w.npz", digest=digest(weights), size_bytes=len(weights))
    manifest = Bundle.open(bundle_file(tmp_path / "small.edgert")).manifest
    more = manifest.model_copy(update={"artifacts": (artifact,)})
    create(tmp_path / "m.edgert", more, {artifact.digest: weights})
    tracemalloc.start()
    try:
        Bundle.open(tmp_path / "m.edgert")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
