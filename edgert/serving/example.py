"""A request that works: made from the golden inputs of a bundle, and the `curl` line that sends it."""

import io
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgert import golden, samples
from edgert.bundle import Bundle
from edgert.errors import BundleError
from edgert.serving.codecs import encode_request

__all__ = ["curl", "golden_inputs", "request_body"]

_INLINE_BYTES = 1600
_DIGITS = 4


def golden_inputs(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """The inputs of the first golden vector, by input name.

    Raises:
        BundleError: the bundle has no golden vectors.
    """
    arrays = samples.load_arrays(io.BytesIO(bundle.read(bundle.require("golden"))))
    inputs = golden.inputs(arrays)
    if not inputs or any(not array.ndim or not len(array) for array in inputs.values()):
        raise BundleError(f"the golden vectors of {bundle.manifest.model} hold no inputs")
    return {name: array[0] for name, array in inputs.items()}


def request_body(inputs: Mapping[str, NDArray[Any]]) -> bytes:
    """The inputs as a JSON request, real numbers rounded to a few digits so that people can read it."""
    short = {
        name: array.astype(np.float64).round(_DIGITS).astype(array.dtype) if array.dtype.kind == "f" else array
        for name, array in inputs.items()
    }
    return encode_request(short).body


def curl(endpoint: str, model: str, body: bytes, *, folder: Path | None = None) -> str:
    """The line for a terminal that sends `body` to a model.

    Args:
        endpoint: ``http://127.0.0.1:8080``.
        folder: a body too long for a line is kept there as ``<model>.json``; without it the line is long.
    """
    data = body.decode()
    if folder is not None and len(body) > _INLINE_BYTES:
        path = folder / f"{model}.json"
        path.write_bytes(body)
        data = f"@{path}"
    return shlex.join(["curl", "-s", f"{endpoint}/v2/models/{model}/infer", "-d", data])
