"""The source tar: same parts same bytes, hostile tars refused."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from converters.recipe import Lock, Recipe
from converters.source import Source, open_source, pack
from edgert import profiles
from edgert.errors import BundleError
from edgert.values import digest


def _source() -> Source:
    recipe = Recipe(model="tiny", profile="x86-64", calibrate=digest(b"samples"))
    lock = Lock(profile=profiles.load("x86-64"), precision="int8", scheme="static-int8", weight_bits=7)
    return Source(recipe, lock, b"model", b"{}", calibrate=b"samples")


def test_what_was_packed_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "m.source.tar"
    path.write_bytes(pack(_source()))
    assert open_source(path) == _source()
    assert pack(open_source(path)) == path.read_bytes()


def test_samples_that_are_not_those_of_the_recipe_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.source.tar"
    source = _source()
    path.write_bytes(pack(Source(source.recipe, source.lock, b"model", b"{}", calibrate=b"others")))
    with pytest.raises(BundleError, match="not those the recipe names"):
        open_source(path)


def _tar(path: Path, *entries: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w") as tar:
        for info in entries:
            tar.addfile(info, io.BytesIO(b"x" * info.size))


def _entry(name: str, size: int = 1, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    if kind == tarfile.SYMTYPE:
        info.linkname, info.size = "/etc/passwd", 0
    return info


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: _tar(path, _entry("../evil")),
        lambda path: _tar(path, _entry("/etc/cron.d/evil")),
        lambda path: _tar(path, _entry("model.onnx", kind=tarfile.SYMTYPE)),
        lambda path: _tar(path, _entry("model.onnx"), _entry("model.onnx")),
        lambda path: _tar(path, _entry("model.onnx")),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no tar at all" * 100),
        lambda path: path.write_bytes(pack(_source())[:1400]),
        lambda path: path.write_bytes(pack(_source()).replace(b'"static-int8"', b'"../../int8"')),
        lambda path: path.unlink(missing_ok=True),
    ],
)  # fmt: skip
def test_damaged_and_hostile_files_are_refused(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    path = tmp_path / "m.source.tar"
    damage(path)
    with pytest.raises(BundleError):
        open_source(path)
    assert [entry.name for entry in tmp_path.iterdir()] in (["m.source.tar"], [])
