"""From a bundle to a session: which backend opens which artifact on this machine, with every reason when none does."""

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgert import host, plugins
from edgert.backends.base import DEFAULT_OPTIONS, Availability, Backend, Session, SessionOptions
from edgert.bundle import Bundle
from edgert.errors import BackendError, BundleError, StoreError
from edgert.manifest import Artifact
from edgert.samples import Samples
from edgert.store import Store
from edgert.values import digest_file

__all__ = ["Answers", "Opened", "answer", "available", "backend_for", "materialized", "open_bundle"]

_PACKAGE = "edgert.backends"


@dataclass(frozen=True, slots=True)
class Opened:
    """A session, and what it was opened from.

    Args:
        session: to be closed by whoever asked for it.
        artifact: the one of several alternatives that was chosen.
        backend: name of the plug-in that opened it.
        version: of the runtime behind that plug-in.
    """

    session: Session
    artifact: Artifact
    backend: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a session said to all samples.

    Args:
        outputs: by output name, first axis = samples.
        run_ms: wall time of each run.
    """

    outputs: dict[str, NDArray[Any]]
    run_ms: tuple[float, ...]


def backend_for(format: str) -> tuple[str, Backend]:  # noqa: A002 - the manifest's word
    """The first available plug-in of ``edgert.backends`` that opens this format, with its name.

    Raises:
        BackendError: none does; the message holds every reason.
    """
    reasons = []
    for name in plugins.names(_PACKAGE):
        backend = _load(name)
        if isinstance(backend, str):
            reasons.append(f"{name}: {backend}")
        elif format in backend.formats:
            found = available(name)
            if found.available:
                return name, backend
            reasons.append(f"{name}: {found.reason}")
    raise BackendError(
        f"no backend here opens {format!r} artifacts" + (f" ({'; '.join(reasons)})" if reasons else ""),
        hint="`edgert doctor` says what each backend lacks",
    )


@cache
def available(name: str) -> Availability:
    """What the backend's own probe says; asked once per process."""
    backend = _load(name)
    return Availability(False, "", backend) if isinstance(backend, str) else backend.probe()


def open_bundle(
    bundle: Bundle, options: SessionOptions = DEFAULT_OPTIONS, *, artifact: Artifact | None = None
) -> Opened:
    """Open the first of the `infer` artifacts that works on this machine.

    Args:
        artifact: this one and no other.

    Raises:
        BackendError: none can be opened; the message holds every reason.
        BundleError: the bundle has no such artifact, or its bytes are damaged.
    """
    candidates = [artifact] if artifact else [one for one in bundle.manifest.artifacts if one.role == "infer"]
    if not candidates:
        bundle.require("infer")
    reasons = []
    for candidate in candidates:
        try:
            return _open(bundle, candidate, options)
        except BackendError as e:
            reasons.append(f"{candidate.file}: {e.message}")
    raise BackendError(
        f"model {bundle.manifest.model} cannot be opened here: {'; '.join(reasons)}",
        hint=f"it was made for profile {bundle.manifest.profile}; `edgert doctor` says what this machine has",
    )


def answer(session: Session, samples: Samples, progress: Callable[[int], None] | None = None) -> Answers:
    """Run every sample, one at a time.

    Args:
        progress: called with the number of samples done.

    Raises:
        SamplesError: the samples do not fit the inputs.
        BackendError: the runtime failed.
    """
    parts: dict[str, list[NDArray[Any]]] = {spec.name: [] for spec in session.outputs}
    run_ms = []
    for feed in samples.feeds(session.inputs):
        began = time.perf_counter()
        answers = session.run(feed)
        run_ms.append((time.perf_counter() - began) * 1e3)
        for name, array in answers.items():
            parts[name].append(array)
        if progress:
            progress(len(run_ms))
    rows = all(samples.inputs[spec.name].ndim == len(spec.shape) for spec in session.inputs)
    return Answers({name: _joined(arrays, rows) for name, arrays in parts.items()}, tuple(run_ms))


@contextmanager
def materialized(bundle: Bundle, artifact: Artifact) -> Iterator[Path]:
    """The artifact as a verified file: in place in a store, else a temporary copy that lives as long as the block.

    Raises:
        BundleError: the bytes are missing or damaged.
        StoreError: there is no room for the copy.
    """
    if isinstance(bundle.blobs, Store):
        path = bundle.blobs.path(artifact.digest)
        if not path.is_file():
            raise BundleError(f"the store lacks artifact {artifact.file} ({artifact.digest})")
        if digest_file(path) != artifact.digest:
            raise BundleError(f"artifact {artifact.file} in the store is damaged")
        yield path
        return
    data = bundle.read(artifact)
    with tempfile.TemporaryDirectory(prefix="edgert-") as folder:
        path = Path(folder) / artifact.file
        try:
            path.write_bytes(data)
        except OSError as e:
            raise StoreError(
                f"cannot write a copy of {artifact.file}: {e.strerror or e}", hint="make room, or set TMPDIR"
            ) from e
        yield path


def _joined(parts: Sequence[NDArray[Any]], rows: bool) -> NDArray[Any]:
    """The answers to all samples in one array; the axis of a batch of one becomes the axis of the samples."""
    one_axis = rows and all(part.ndim and part.shape[0] == 1 for part in parts)
    joined = np.concatenate(parts) if one_axis else np.stack(parts)
    return joined.astype(np.str_) if joined.dtype.hasobject else joined


def _open(bundle: Bundle, artifact: Artifact, options: SessionOptions) -> Opened:
    name, backend = backend_for(artifact.format)
    version = available(name).version
    obstacle = _too_old(artifact, name, version) or _compiled_for_another(artifact, host.detect())
    if obstacle:
        raise BackendError(obstacle)
    with materialized(bundle, artifact) as path:
        return Opened(backend.open(path, options), artifact, name, version)


def _too_old(artifact: Artifact, name: str, version: str) -> str:
    """Why this runtime is too old for the artifact, or nothing.

    A backend with several runtimes behind it reports ``<runtime> <version>``: then the runtime is what
    ``min_runtime`` names, because their version numbers cannot be compared.
    """
    runtime, _, number = version.rpartition(" ")
    runtime = runtime or name
    minimum = artifact.min_runtime.get(runtime)
    if minimum is None or _numbers(number) >= _numbers(minimum):
        return ""
    return f"needs {runtime} {minimum} or newer, here is {number}"


def _compiled_for_another(artifact: Artifact, machine: host.Host) -> str:
    target = artifact.compiled_for
    if target is None:
        return ""
    if target.soc not in machine.boards:
        return f"compiled for {target.soc}, this machine is {', '.join(machine.boards) or machine.arch}"
    if target.min_driver or target.max_driver:
        return f"compiled for a driver {target.min_driver or '*'}..{target.max_driver or '*'} that no backend here has"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:4])


def _load(name: str) -> Backend | str:
    """The plug-in, or why it cannot be imported: one from outside may lack what it stands on."""
    try:
        backend: Backend = plugins.load(_PACKAGE, name)
    except ImportError as e:
        return f"cannot be imported: {e}"
    return backend
