"""Every importer says what it takes and refuses, with the reason, what is damaged or something else."""

from pathlib import Path

import pytest

from converters.importers.base import Importer
from edgert import plugins
from edgert.errors import ModelError
from tests.support import models

_PACKAGE = "converters.importers"
_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"
_SOUND = {"onnx": models.cnn().SerializeToString()}


@pytest.fixture(params=plugins.names(_PACKAGE))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def importer(name: str) -> Importer:
    plugin: Importer = plugins.load(_PACKAGE, name)
    return plugin


def test_it_takes_its_suffixes_in_any_case_and_no_other(importer: Importer) -> None:
    assert importer.suffixes
    for suffix in importer.suffixes:
        assert importer.accepts(Path(f"model{suffix}"))
        assert importer.accepts(Path(f"MODEL{suffix.upper()}"))
    assert not importer.accepts(Path("model.exe"))
    assert not importer.accepts(Path("model"))


def test_a_sound_file_gives_a_graph(importer: Importer, name: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{importer.suffixes[0]}"
    path.write_bytes(_SOUND[name])
    assert importer.load(path).graph.node


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (_LFS, "Git LFS pointer"),
        (b"hello, this is no model", "not"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "HDF5"),
        (b"PK\x03\x04" + b"\0" * 64, "zip"),
        (b"\0" * 4096, "not"),
        (b"\xff" * 4096, "not"),
    ],
)
def test_what_is_no_model_is_refused_with_the_reason(
    importer: Importer, tmp_path: Path, data: bytes, words: str
) -> None:
    path = tmp_path / f"m{importer.suffixes[0]}"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=words) as caught:
        importer.load(path)
    assert str(path) in caught.value.message


def test_a_missing_file_and_a_folder_are_refused(importer: Importer, tmp_path: Path) -> None:
    for path in (tmp_path / f"m{importer.suffixes[0]}", tmp_path):
        with pytest.raises(ModelError):
            importer.load(path)


def test_a_truncated_file_never_gives_the_whole_graph(importer: Importer, name: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{importer.suffixes[0]}"
    whole = _SOUND[name]
    for length in range(1, len(whole), max(1, len(whole) // 50)):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            importer.load(path)
