"""Samples are checked against the model's inputs before anything runs."""

import io

import numpy as np
import pytest

from converters import data
from edgert.errors import SamplesError
from edgert.samples import Samples, load_arrays
from edgert.values import TensorSpec

_SPEC = TensorSpec("image", "float32", (None, 1, 8, 8))


def test_samples_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SamplesError, match="no array 'image'"):
        data.whole(Samples({"other": np.zeros((2, 1, 8, 8))}), [_SPEC])
    with pytest.raises(SamplesError, match="shape"):
        data.whole(Samples({"image": np.zeros((2, 3, 8, 8))}), [_SPEC])
    with pytest.raises(SamplesError, match="no inputs"):
        data.whole(Samples({"image": np.zeros((2, 3, 8, 8))}), [])


def test_packing_keeps_types_and_labels_and_leaves_the_rest_out() -> None:
    samples = Samples({"image": np.zeros((2, 1, 8, 8), np.uint8), "notes": np.zeros(2)}, np.array([1, 2]))
    arrays = load_arrays(io.BytesIO(data.pack(samples, [_SPEC])))
    assert arrays.keys() == {"image", "labels"}
    assert arrays["image"].dtype == np.uint8


def test_scalar_inputs_are_fed_as_arrays() -> None:
    rate = TensorSpec("rate", "int64", ())
    made = data.whole(Samples({"rate": np.array([8000, 16000])}), [rate])
    assert made.inputs["rate"].tolist() == [8000, 16000]
    assert all(isinstance(feed["rate"], np.ndarray) and feed["rate"].shape == () for feed in made.feeds([rate]))
