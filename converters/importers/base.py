"""What an importer must give: whether a file is for it, and the graph in it."""

from pathlib import Path
from typing import Protocol

import onnx

__all__ = ["Importer"]


class Importer(Protocol):
    """A way in for one kind of model file."""

    suffixes: tuple[str, ...]

    def accepts(self, path: Path) -> bool:
        """Whether the file is of this kind, judged by its name alone."""
        ...

    def load(self, path: Path) -> onnx.ModelProto:
        """The graph in the file, complete in memory. Runs in a child process: the file may be hostile.

        Raises:
            ModelError: missing, damaged, something else, or with parts that cannot run.
        """
        ...
