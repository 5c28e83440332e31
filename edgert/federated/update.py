"""An additive value: what one participant learned, as differences of weights, with the number of examples behind it."""

import io
from dataclasses import dataclass

import numpy as np

from edgert.errors import CheckError, SamplesError
from edgert.samples import load_arrays, pack_arrays
from edgert.values import Weights

__all__ = ["Update", "difference", "moved", "unpack_weights"]


@dataclass(frozen=True, slots=True)
class Update:
    """Differences of weights, by initializer name, and the number of examples they were learned from."""

    delta: Weights
    examples: int

    def check_against(self, weights: Weights) -> None:
        """Refuse an update that does not fit the model.

        Raises:
            CheckError: other names or shapes, or values that are not finite.
        """
        if set(self.delta) != set(weights):
            raise CheckError("the update has other parameters than the model")
        for name, value in self.delta.items():
            if value.shape != weights[name].shape or value.dtype != np.float32:
                raise CheckError(f"parameter {name!r} of the update has shape {value.shape} and type {value.dtype}")
            if not np.isfinite(value).all():
                raise CheckError(f"parameter {name!r} of the update is not finite")

    def pack(self) -> bytes:
        """The ``.npz`` file that travels."""
        return pack_arrays(self.delta)


def difference(trained: Weights, start: Weights, examples: int) -> Update:
    """The update that leads from `start` to `trained`."""
    return Update({name: np.asarray(trained[name] - start[name]) for name in start}, examples)


def moved(weights: Weights, delta: Weights) -> Weights:
    """`weights` + `delta`."""
    return {name: np.asarray(value + delta[name], np.float32) for name, value in weights.items()}


def unpack_weights(data: bytes, limit_bytes: int | None = None) -> Weights:
    """The weights or differences in an ``.npz`` file.

    Args:
        limit_bytes: refuse a file that would unpack to more; None = the limit of `load_arrays`.

    Raises:
        SamplesError: not an ``.npz`` file, or not float32.
    """
    limit = {} if limit_bytes is None else {"limit_bytes": limit_bytes}
    arrays = load_arrays(io.BytesIO(data), **limit)
    if any(array.dtype != np.float32 for array in arrays.values()):
        raise SamplesError("weights must be float32", hint="save them with numpy.savez as float32 arrays")
    return arrays
