"""What a runtime must give: open an artifact, answer, say who ran which node; and for training: step, export."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgert.errors import BackendError
from edgert.manifest import Training
from edgert.values import Feeds, TensorSpec, Weights, show_shape

__all__ = [
    "DEFAULT_OPTIONS",
    "Availability",
    "Backend",
    "Metrics",
    "Session",
    "SessionOptions",
    "TrainingBackend",
    "TrainingSession",
    "check_feeds",
    "first_line",
]


class Availability(NamedTuple):
    """Whether a backend works on this machine, and why not."""

    available: bool
    version: str
    reason: str = ""


class Metrics(NamedTuple):
    """What one training step saw: mean loss and the number of right answers, padding left out."""

    loss: float
    correct: float


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How an artifact is opened.

    Args:
        threads: inside one operator; more than one pays only where a measurement says so.
        spinning: let idle threads burn CPU while they wait (off: an idle box stays idle).
        providers: execution providers or delegates in order; empty = the backend's CPU.
        provider_options: settings per provider.
    """

    threads: int = 1
    spinning: bool = False
    providers: tuple[str, ...] = ()
    provider_options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


DEFAULT_OPTIONS = SessionOptions()


class Session(Protocol):
    """An open artifact; used by one thread at a time."""

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...

    @property
    def outputs(self) -> Sequence[TensorSpec]: ...

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """The outputs for one feed.

        Raises:
            BackendError: a feed is missing, has a wrong shape or type, or the runtime failed.
        """
        ...

    def nodes_by_provider(self) -> dict[str, int]:
        """How many nodes each provider or delegate runs: the partition report."""
        ...

    def close(self) -> None:
        """Give the memory back; the session must not be used again."""
        ...


class Backend(Protocol):
    """A runtime."""

    formats: tuple[str, ...]

    def probe(self) -> Availability:
        """Whether artifacts can be opened here; never raises."""
        ...

    def open(self, path: Path, options: SessionOptions = DEFAULT_OPTIONS) -> Session:
        """Open an artifact file.

        Raises:
            BackendError: the file cannot be opened by this runtime, or an option cannot be met.
        """
        ...


class TrainingSession(Protocol):
    """A training graph with its parameters and optimizer state, in buffers that it owns."""

    def step(self, batch: Feeds, scalars: Mapping[str, float]) -> Metrics:
        """One optimizer step on one batch (data inputs, labels and sample weights by name)."""
        ...

    def export(self) -> Weights:
        """Copies of the parameters, by initializer name."""
        ...

    def restore(self, weights: Weights) -> None:
        """Set the parameters (copied) and clear the optimizer state.

        Raises:
            BackendError: a name is missing or a shape differs.
        """
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class TrainingBackend(Protocol):
    """A runtime that steps training graphs."""

    def open_training(
        self, path: Path, training: Training, options: SessionOptions = DEFAULT_OPTIONS
    ) -> TrainingSession:
        """Open a training graph; the parameters are undefined until `restore`.

        Raises:
            BackendError: the graph cannot be opened or does not fit `training`.
        """
        ...


def check_feeds(specs: Sequence[TensorSpec], feeds: Feeds) -> None:
    """Every input is there, nothing else is, and each array has the type and shape asked for.

    Raises:
        BackendError: it is not so; the message names the input.
    """
    if len(feeds) != len(specs) or any(spec.name not in feeds for spec in specs):
        names = [spec.name for spec in specs]
        missing = [name for name in names if name not in feeds]
        unknown = sorted(set(feeds) - set(names))
        what = f"the model needs the input {missing[0]!r}" if missing else f"the model has no input {unknown[0]!r}"
        raise BackendError(f"{what} (its inputs: {', '.join(names)})")
    for spec in specs:
        array = feeds[spec.name]
        if not isinstance(array, np.ndarray):
            raise BackendError(f"input {spec.name!r} must be an array, not {type(array).__name__}")
        if array.dtype.name != spec.dtype and not (spec.dtype == "str" and array.dtype.kind in "OSU"):
            raise BackendError(f"input {spec.name!r} must be {spec.dtype}, not {array.dtype.name}")
        if not spec.fits(array.shape):
            raise BackendError(f"input {spec.name!r} must have shape {show_shape(spec.shape)}, not {array.shape}")


def first_line(error: BaseException) -> str:
    """What a runtime's exception says in its first line, up to 300 characters; the name of its type when it is mute."""
    words = str(error).strip()
    return words.splitlines()[0][:300] if words else type(error).__name__
