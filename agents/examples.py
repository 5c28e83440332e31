"""Local examples of a model: ``.npz`` files in a configured folder. They never leave the box.

Nothing of them but their number is ever sent or logged.
"""

import zipfile
from pathlib import Path

import numpy as np

from edgert import samples as samples_file
from edgert.errors import SamplesError
from edgert.samples import Samples

__all__ = ["count", "read"]


def count(folder: Path) -> int:
    """How many examples there are, from the headers of the files alone; 0 when there are none.

    Raises:
        SamplesError: a file is not an ``.npz`` file with labels.
    """
    return sum(_length(path) for path in _files(folder))


def read(folder: Path) -> Samples:
    """All examples, file after file in the order of their names.

    Raises:
        SamplesError: there are none, or the files do not fit together.
    """
    parts = [samples_file.load(path) for path in _files(folder)]
    if not parts:
        raise SamplesError(f"{folder} holds no examples", hint="put .npz files with inputs and labels there")
    names = set(parts[0].inputs)
    if any(set(part.inputs) != names or part.labels is None for part in parts):
        raise SamplesError(
            f"the files in {folder} hold different inputs, or no labels",
            hint="every file needs the model's inputs and an array `labels`",
        )
    try:
        inputs = {name: np.concatenate([part.inputs[name] for part in parts]) for name in sorted(names)}
        labels = np.concatenate([part.labels for part in parts if part.labels is not None])
    except ValueError as e:
        raise SamplesError(
            f"the files in {folder} hold inputs of different shapes", hint="only the first dimension may differ"
        ) from e
    return Samples(inputs, labels)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npz")) if folder.is_dir() else []


def _length(path: Path) -> int:
    try:
        with zipfile.ZipFile(path) as archive, archive.open("labels.npy") as labels:
            version = np.lib.format.read_magic(labels)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, _ = reader(labels)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as e:
        raise SamplesError(
            f"{path} is not an .npz file with labels", hint="write it with numpy.savez(..., labels=...)"
        ) from e
    return int(shape[0]) if shape else 0
