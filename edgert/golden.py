"""Golden vectors: inputs and what the model answered to them, in one ``.npz`` (`input.<name>`, `output.<name>`).

The first axis of every array = vectors; each entry is a whole input or output, batch axis included or not as the model
has it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from edgert.errors import CheckError
from edgert.samples import pack_arrays
from edgert.values import Feeds, TensorSpec

__all__ = ["feeds", "inputs", "outputs", "pack"]

_INPUT, _OUTPUT = "input.", "output."

_Arrays = Mapping[str, NDArray[Any]]


def pack(inputs: _Arrays, outputs: _Arrays) -> bytes:
    """The ``.npz`` file, the same bytes for the same vectors."""
    return pack_arrays(
        {_INPUT + name: a for name, a in inputs.items()} | {_OUTPUT + name: a for name, a in outputs.items()}
    )


def inputs(arrays: _Arrays) -> dict[str, NDArray[Any]]:
    """The inputs among the arrays of the file, by input name."""
    return _named(arrays, _INPUT)


def outputs(arrays: _Arrays) -> dict[str, NDArray[Any]]:
    """The expected outputs among the arrays of the file, by output name."""
    return _named(arrays, _OUTPUT)


def feeds(arrays: _Arrays, specs: Sequence[TensorSpec]) -> Iterator[Feeds]:
    """One feed per golden vector.

    Raises:
        CheckError: an input is missing, or the arrays differ in length.
    """
    given = inputs(arrays)
    for spec in specs:
        if spec.name not in given:
            raise CheckError(f"the golden vectors hold no input {spec.name!r}")
    lengths = {len(array) if array.ndim else 0 for array in (*given.values(), *outputs(arrays).values())}
    if len(lengths) != 1:
        raise CheckError("the golden vectors differ in number")
    for i in range(lengths.pop()):
        yield {spec.name: given[spec.name][i] for spec in specs}


def _named(arrays: _Arrays, prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
