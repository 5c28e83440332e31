"""External data comes from plain files in the model's folder, from nowhere else."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from converters import external
from edgert.errors import ModelError
from tests.support import models, onnx_models


def _load(path: Path) -> onnx.ModelProto:
    model = onnx.load(path, load_external_data=False)
    external.load(model, path)
    return model


def test_a_file_beside_the_model_is_taken_in(tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.float32)
    path = onnx_models.with_external_data(tmp_path / "m.onnx", offset="16", stored=values.tobytes())
    np.testing.assert_array_equal(models.float_weights(_load(path))["w"], values[4:])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stored": None}, "not there"),
        ({"location": ""}, "no file"),
        ({"location": "../weights.bin"}, "outside"),
        ({"location": "/etc/passwd"}, "outside"),
        ({"location": "C:\\weights.bin"}, "outside"),
        ({"location": "a\\..\\..\\weights.bin"}, "outside"),
        ({"location": "weights\0.bin"}, "no file"),
        ({"offset": "zero"}, "number"),
        ({"offset": "-4"}, "number"),
        ({"offset": "99999999999999999999"}, "number"),
        ({"offset": "8"}, "after the end"),
        ({"length": "1000"}, "after the end"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, options: dict[str, str | None], words: str) -> None:
    path = onnx_models.with_external_data(tmp_path / "m.onnx", **options)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=words):
        _load(path)


def test_links_are_refused_wherever_they_point(tmp_path: Path) -> None:
    path = onnx_models.with_external_data(tmp_path / "m.onnx")
    (tmp_path / "weights.bin").rename(tmp_path / "real.bin")
    (tmp_path / "weights.bin").symlink_to(tmp_path / "real.bin")
    with pytest.raises(ModelError, match="link"):
        _load(path)


def test_a_linked_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "weights.bin").write_bytes(b"\0" * 16)
    (tmp_path / "here").symlink_to(tmp_path / "there")
    path = onnx_models.with_external_data(tmp_path / "m.onnx", location="here/weights.bin", stored=None)
    with pytest.raises(ModelError, match="link"):
        _load(path)
