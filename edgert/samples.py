"""Samples: one array per model input in an ``.npz`` file, first axis = samples, with optional ``labels``.

With the input's own rank each row is a batch of one; with one axis more each entry is a whole input.
Nothing is ever unpickled, and a file is written the same way every time: same arrays, same bytes.
"""

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgert.errors import SamplesError
from edgert.files import write_durable
from edgert.values import Feeds, TensorSpec, show_shape

__all__ = ["Samples", "load", "load_arrays", "pack_arrays", "save"]

_LIMIT_BYTES = 8 << 30
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Samples:
    """Inputs of a model, and what they are.

    Args:
        inputs: by input name; first axis = samples, equally long everywhere.
        labels: int or float [samples], or None.
    """

    inputs: dict[str, NDArray[Any]]
    labels: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values()), ()))

    def take(self, indices: slice | NDArray[np.intp]) -> "Samples":
        """The samples at `indices`."""
        labels = None if self.labels is None else self.labels[indices]
        return Samples({name: array[indices] for name, array in self.inputs.items()}, labels)

    def feeds(self, specs: Sequence[TensorSpec]) -> Iterator[Feeds]:
        """One feed per sample, in the shape and type that `specs` asks for.

        Raises:
            SamplesError: an input is missing, or has a rank that fits neither rule.
        """
        arrays = {spec.name: self._fitted(spec) for spec in specs}
        for i in range(len(self)):
            yield {
                spec.name: arrays[spec.name][i, ...]
                if arrays[spec.name].ndim == len(spec.shape) + 1
                else arrays[spec.name][i : i + 1]
                for spec in specs
            }

    def _fitted(self, spec: TensorSpec) -> NDArray[Any]:
        if spec.name not in self.inputs:
            raise SamplesError(
                f"the samples hold no array {spec.name!r} (they hold {sorted(self.inputs)})",
                hint="name each array in the .npz file as the model's input",
            )
        array = self.inputs[spec.name]
        row = array.shape[1:] if array.ndim == len(spec.shape) + 1 else (1, *array.shape[1:])
        if not spec.fits(row):
            raise SamplesError(
                f"samples {spec.name!r} have shape {array.shape}, the model's input is {show_shape(spec.shape)}",
                hint="first axis = samples; each row is a batch of one, or with one axis more a whole input",
            )
        return array.astype(np.dtype(spec.dtype), copy=False)


def load(path: Path) -> Samples:
    """The samples in an ``.npz`` file.

    Raises:
        SamplesError: not an ``.npz`` file, pickled objects inside, or arrays of unequal length.
    """
    arrays = load_arrays(path)
    labels = arrays.pop("labels", None)
    if not arrays:
        raise SamplesError(f"{path} holds no input arrays", hint="write it with numpy.savez(path, input_name=array)")
    lengths = {name: len(array) if array.ndim else -1 for name, array in arrays.items()}
    if labels is not None:
        lengths["labels"] = len(labels) if labels.ndim else -1
    if len(set(lengths.values())) != 1 or -1 in lengths.values():
        raise SamplesError(f"{path}: the arrays differ in length: {lengths}", hint="first axis = samples")
    if not next(iter(lengths.values())):
        raise SamplesError(f"{path} holds no samples", hint="the first axis of every array counts the samples")
    return Samples(arrays, labels)


def load_arrays(path: Path | io.BytesIO, *, limit_bytes: int = _LIMIT_BYTES) -> dict[str, NDArray[Any]]:
    """The arrays of an ``.npz`` file, by name, never unpickling.

    Args:
        limit_bytes: refuse a file that would unpack to more.

    Raises:
        SamplesError: not an ``.npz`` file, or a pickled object inside.
    """
    name = path if isinstance(path, Path) else "the samples"
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > limit_bytes:
                raise SamplesError(f"{name} would unpack to more than {limit_bytes} bytes", hint="use fewer samples")
            return dict(_array(archive, entry) for entry in archive.infolist())
    except FileNotFoundError as e:
        raise SamplesError(f"there is no file {name}", hint="check the path") from e
    except SamplesError:
        raise
    except (
        Exception
    ) as e:  # zipfile, its decompressors and numpy's header parser raise whatever hostile bytes make them
        why = str(e) or type(e).__name__
        raise SamplesError(
            f"{name} is not a readable .npz file: {why}", hint="write it with numpy.savez, without objects"
        ) from e


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[str, NDArray[Any]]:
    if not entry.filename.endswith(".npy"):
        raise ValueError(f"it holds {entry.filename[:80]!r}")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
        raise ValueError("it is encrypted or packed in another way than numpy does")
    with archive.open(entry) as file:
        return entry.filename.removesuffix(".npy"), np.lib.format.read_array(file, allow_pickle=False)


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """An ``.npz`` file of `arrays`: sorted, uncompressed, without times, so the same arrays give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(arrays[name], order="C"), version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH), content.getvalue())
    return buffer.getvalue()


def save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write `pack_arrays(arrays)` to `path` durably."""
    write_durable(path, pack_arrays(arrays))
