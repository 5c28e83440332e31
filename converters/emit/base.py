"""What an emitter must give: bytes of one format from a graph and a precision."""

from typing import Protocol

import onnx

from converters.quantize.base import Precision
from edgert.profiles import Profile

__all__ = ["Emitter"]


class Emitter(Protocol):
    """A way to write artifacts of one format; the file's name is the name of the format."""

    def emit(self, model: onnx.ModelProto, precision: Precision, profile: Profile) -> bytes:
        """The artifact; same graph and precision, same bytes.

        Raises:
            CheckError: this graph cannot be written in that precision.
        """
        ...

    def min_runtime(self, artifact: bytes) -> dict[str, str]:
        """Lowest version of each runtime that opens it, by backend name."""
        ...
