"""From options to a request."""

from pathlib import Path

import numpy as np
import pytest

from converters.order import Wishes, request
from edgert.errors import SamplesError, UsageError


def test_a_name_is_made_from_the_file_name() -> None:
    with request(Path("My Model (v2).onnx"), Wishes(profile="x86-64")) as made:
        assert made.recipe.model == "my-model-v2"


@pytest.mark.parametrize(
    ("file", "wishes"),
    [
        ("m.onnx", Wishes()),
        ("m.onnx", Wishes(profile="no-such-box")),
        ("m.onnx", Wishes(profile="x86-64", name="../evil")),
        ("m.onnx", Wishes(profile="x86-64", name="")),
        ("...onnx", Wishes(profile="x86-64")),
        ("m.onnx", Wishes(profile="x86-64", precision="int3")),
        ("m.onnx", Wishes(profile="x86-64", max_drop=-1.0)),
        ("m.onnx", Wishes(profile="x86-64", max_drop=float("nan"))),
    ],
)
def test_options_that_make_no_sense_are_wrong_usage(file: str, wishes: Wishes) -> None:
    with pytest.raises(UsageError), request(Path(file), wishes):
        pass


def test_samples_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"nothing")
    with pytest.raises(SamplesError), request(Path("m.onnx"), Wishes("x86-64", calibrate=tmp_path / "x.npz")):
        pass


def test_defaults_are_those_of_the_recipe(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 4), np.float32))
    with request(Path("m.onnx"), Wishes("x86-64", evaluate=tmp_path / "x.npz")) as made:
        assert (made.recipe.precision, made.recipe.max_drop_points, made.recipe.train) == ("auto", 1.0, False)
        assert made.evaluate is not None
        assert len(made.evaluate) == 3
