"""Weights go in by initializer name, and only where they fit."""

from pathlib import Path

import numpy as np
import pytest

from converters import weights
from edgert.errors import SamplesError
from tests.support import models


def test_named_weights_are_replaced_and_the_others_kept(tmp_path: Path) -> None:
    model, new = models.mlp(0), models.mlp_weights(1)
    np.savez(tmp_path / "w.npz", W1=new["W1"], b2=new["b2"])
    weights.put(model, tmp_path / "w.npz")
    found = models.float_weights(model)
    np.testing.assert_array_equal(found["W1"], new["W1"])
    np.testing.assert_array_equal(found["b2"], new["b2"])
    np.testing.assert_array_equal(found["W2"], models.mlp_weights(0)["W2"])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"nobody": np.zeros(3, np.float32)}, "nobody"),
        ({"b2": np.zeros(4, np.float32)}, r"\(4,\)"),
        ({"b2": np.zeros(3, np.float64)}, "float64"),
        ({"b2": np.array([0, 0, np.nan], np.float32)}, "NaN"),
        ({}, "no weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "w.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(SamplesError, match=words):
        weights.put(models.mlp(), tmp_path / "w.npz")
