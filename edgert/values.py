"""Small values that everything shares: digests, canonical JSON, the description of a tensor."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DIGEST_PATTERN",
    "Feeds",
    "TensorSpec",
    "Weights",
    "canonical_json",
    "digest",
    "digest_file",
    "is_name",
    "show_shape",
]

Feeds = Mapping[str, NDArray[Any]]
"""One array per input of a model, by input name."""

Weights = dict[str, NDArray[np.float32]]
"""Trainable parameters by initializer name."""

DIGEST_PATTERN = r"sha256:[0-9a-f]{64}"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape of an input or output.

    Args:
        name: as in the graph; may hold any character, is never used as a path.
        dtype: numpy's name of the element type (``float32``, ``int64``, ``uint8``, ``bool``, ``str``).
        shape: None where the size is free, the batch axis included.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of that shape may be fed: same rank, and the same sizes where they are not free."""
        return len(shape) == len(self.shape) and all(
            want is None or want == have for want, have in zip(self.shape, shape, strict=True)
        )


def show_shape(shape: tuple[int | None, ...]) -> str:
    """A shape for people: ``1x28x28``, with ``?`` for a free size."""
    return "x".join("?" if size is None else str(size) for size in shape) or "scalar"


def digest(data: bytes) -> str:
    """``sha256:<64 hex digits>`` of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """`digest` of a file's content, read in blocks."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no spaces: the same value gives the same bytes.

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON cannot express.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def is_name(text: str) -> bool:
    """Whether `text` may name a model, a device or a job: safe in a topic, a URL, a certificate and a file name."""
    return _NAME.fullmatch(text) is not None
