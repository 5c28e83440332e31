"""Samples for a model: brought into one form, checked against the inputs, made up where none are given."""

from collections.abc import Sequence

import numpy as np

from edgert.errors import SamplesError
from edgert.samples import Samples, pack_arrays
from edgert.values import TensorSpec

__all__ = ["made_up", "pack", "whole"]

_FREE_SIZE = 8


def whole(samples: Samples, specs: Sequence[TensorSpec]) -> Samples:
    """The samples with each entry a whole input, in the model's types; arrays that are no input are left out.

    Raises:
        SamplesError: an input is missing or does not fit the model.
    """
    feeds = list(samples.feeds(specs))
    if not specs:
        raise SamplesError("the model has no inputs")
    return Samples({spec.name: np.stack([feed[spec.name] for feed in feeds]) for spec in specs}, samples.labels)


def pack(samples: Samples, specs: Sequence[TensorSpec]) -> bytes:
    """The samples as a file, in the types they came in; arrays that are no input are left out."""
    arrays = {spec.name: samples.inputs[spec.name] for spec in specs}
    if samples.labels is not None:
        arrays["labels"] = samples.labels
    return pack_arrays(arrays)


def made_up(specs: Sequence[TensorSpec], count: int) -> Samples:
    """Random inputs, the same every time: numbers in 0..1, for models that come without samples.

    Free sizes become 1 on the first axis and 8 elsewhere.
    """
    rng = np.random.default_rng(0)
    inputs = {}
    for spec in specs:
        shape = [
            count,
            *((1 if axis == 0 else _FREE_SIZE) if size is None else size for axis, size in enumerate(spec.shape)),
        ]
        dtype = np.dtype(spec.dtype)
        drawn = rng.random(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        inputs[spec.name] = drawn.astype(dtype)
    return Samples(inputs)
