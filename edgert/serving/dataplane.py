"""From a body to an answer: decode, check against the model, run, encode; and which session does it.

Everything that costs time happens in the lane of the model, never on the event loop.
"""

import asyncio
import ctypes
import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgert.backends.base import Session
from edgert.bundle import Bundle
from edgert.errors import EdgeRTError, InputError, ServeError
from edgert.runtime import open_bundle
from edgert.serving.codecs import Encoded, Request, decode_request, encode_response
from edgert.serving.example import golden_inputs, request_body
from edgert.serving.lanes import Lane
from edgert.serving.models import Served, Table
from edgert.serving.tensors import datatype_of
from edgert.store import Store
from edgert.values import TensorSpec, show_shape

__all__ = ["Dataplane", "OpenModel", "Opener", "answer", "feeds", "metadata", "open_from"]

logger = logging.getLogger(__name__)
_WINDOW = 256
_Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model version that can answer.

    Args:
        platform: backend and format, ``onnxruntime_onnx``.
        example: a JSON request that it answers.
    """

    model: str
    version: int
    platform: str
    session: Session
    example: bytes = b""


Opener = Callable[[str, int, str], OpenModel]
"""Opens model, version, digest; called in the lane that will run it."""


def open_from(store: Store) -> Opener:
    """Opens bundles of a store and warms them up with their first golden vector."""

    def open_model(model: str, version: int, digest: str) -> OpenModel:
        bundle = Bundle.load(store, digest)
        if bundle.manifest.model != model:
            raise ServeError(f"bundle {digest} holds model {bundle.manifest.model}, not {model}")
        inputs = golden_inputs(bundle)
        opened = open_bundle(bundle)
        try:
            opened.session.run(inputs)
            for spec in (*opened.session.inputs, *opened.session.outputs):
                datatype_of(spec.dtype)
        except EdgeRTError:
            opened.session.close()
            raise
        platform = f"{opened.backend}_{opened.artifact.format}"
        return OpenModel(model, version, platform, opened.session, request_body(inputs))

    return open_model


def metadata(opened: OpenModel) -> _Row:
    """The answer to "what is this model": datatypes and shapes, -1 where a size is free."""
    return {
        "name": opened.model,
        "versions": [str(opened.version)],
        "platform": opened.platform,
        "inputs": [_describe(spec) for spec in opened.session.inputs],
        "outputs": [_describe(spec) for spec in opened.session.outputs],
    }


def feeds(request: Request, specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """The inputs of a request, checked against what the model takes.

    Raises:
        InputError: an input is missing, unknown, or has a wrong datatype or shape.
    """
    unknown = request.inputs.keys() - {spec.name for spec in specs}
    if unknown:
        raise InputError(
            f"the model has no input {min(unknown)[:80]!r}",
            hint=f"it takes {', '.join(spec.name for spec in specs)}",
        )
    return {spec.name: _fitted(request.inputs.get(spec.name), spec) for spec in specs}


def answer(opened: OpenModel, body: bytes, header_length: str | None = None) -> Encoded:
    """The encoded answer of a model to an encoded request.

    Raises:
        InputError: the request is malformed or does not fit the model.
        BackendError: the runtime could not run it.
    """
    request = decode_request(body, header_length)
    names = [spec.name for spec in opened.session.outputs]
    wanted = request.outputs
    unknown = [row.name for row in wanted or () if row.name not in names]
    if unknown:
        raise InputError(f"the model has no output {unknown[0][:80]!r}", hint=f"it gives {', '.join(names)}")
    outputs = opened.session.run(feeds(request, opened.session.inputs))
    chosen = (
        [(name, outputs[name], request.binary_outputs) for name in names]
        if wanted is None
        else [(row.name, outputs[row.name], row.binary) for row in wanted]
    )
    return encode_response(opened.model, str(opened.version), chosen, request.id)


@dataclass(slots=True)
class _Counters:
    requests: int = 0
    errors: int = 0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))


@dataclass(frozen=True, slots=True)
class _Ready:
    opened: OpenModel
    lane: Lane


class Dataplane:
    """The models of this process; used on one event loop.

    Args:
        opener: how a model version is opened.
    """

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._table: Table[_Ready] = Table()
        self._counters: dict[str, _Counters] = {}
        self._one_load = asyncio.Lock()
        self._releases: set[asyncio.Task[None]] = set()

    async def load(self, model: str, version: int, digest: str) -> None:
        """Open a version and let it answer; until then, and when that fails, the old one does.

        Raises:
            EdgeRTError: it could not be opened or warmed up.
        """
        async with self._one_load:
            lane = Lane(model)
            self._table.begin(model)
            reason = "it was interrupted"
            try:
                opened = await lane.call(self._opener, model, version, digest)
                old = self._table.answer(Served(model, version, _Ready(opened, lane)))
                reason = ""
            except EdgeRTError as e:
                reason = e.message
                raise
            finally:
                if reason:
                    lane.close()
                    self._table.fail(model, reason)
            logger.info("model %s version %d answers (%s)", model, version, opened.platform)
            self._release(old)

    def unload(self, model: str) -> None:
        """Forget a model; requests in flight are still answered."""
        self._release(self._table.remove(model))
        self._counters.pop(model, None)

    async def infer(self, model: str, version: str | None, body: bytes, header_length: str | None) -> Encoded:
        """The answer of a model.

        Raises:
            UsageError: there is no such model or version.
            ServeError: the model is being loaded or could not be loaded.
            InputError: the request is malformed or does not fit the model.
            BackendError: the runtime could not run it.
        """
        served = self._table.take(model, version)
        counters = self._counters.setdefault(model, _Counters())
        counters.requests += 1
        start = time.perf_counter()
        answered = False
        try:
            encoded = await served.value.lane.call(answer, served.value.opened, body, header_length)
            answered = True
        finally:
            counters.errors += not answered
            counters.latencies_ms.append((time.perf_counter() - start) * 1000)
            if self._table.give(served):
                self._release(served)
        return encoded

    def opened(self, model: str, version: str | None = None) -> OpenModel:
        """What answers for a model.

        Raises:
            UsageError: there is no such model or version.
            ServeError: the model is being loaded or could not be loaded.
        """
        return self._table.find(model, version).value.opened

    def models(self) -> list[OpenModel]:
        """Everything that answers, by name."""
        return [served.value.opened for _, served in sorted(self._table.answering.items())]

    def ready(self) -> bool:
        """Whether every known model answers."""
        return self._table.ready()

    def stats(self) -> dict[str, _Row]:
        """Per model: version, requests, errors, median and largest latency of the last few hundred, all since start."""
        rows: dict[str, _Row] = {}
        for opened in self.models():
            counters = self._counters.get(opened.model, _Counters())
            latencies = counters.latencies_ms
            rows[opened.model] = {
                "version": opened.version,
                "requests": counters.requests,
                "errors": counters.errors,
                "latency_ms": round(statistics.median(latencies), 4) if latencies else None,
                "latency_max_ms": round(max(latencies), 4) if latencies else None,
            }
        return rows

    async def close(self) -> None:
        """Release every model that nobody uses."""
        for opened in self.models():
            self.unload(opened.model)
        await asyncio.gather(*self._releases)

    def _release(self, served: Served[_Ready] | None) -> None:
        if served is not None:
            task = asyncio.get_running_loop().create_task(_release(served.value))
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)


async def _release(ready: _Ready) -> None:
    await ready.lane.call(ready.opened.session.close)
    ready.lane.close()
    await asyncio.to_thread(_trim)
    logger.info("released model %s version %d", ready.opened.model, ready.opened.version)


def _trim() -> None:
    """Give freed memory back to the system: glibc keeps it otherwise, which looks like a leak after every swap."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _describe(spec: TensorSpec) -> _Row:
    shape = [-1 if size is None else size for size in spec.shape]
    return {"name": spec.name, "datatype": datatype_of(spec.dtype), "shape": shape}


def _fitted(array: NDArray[Any] | None, spec: TensorSpec) -> NDArray[Any]:
    wanted = datatype_of(spec.dtype)
    if array is None:
        raise InputError(f"input {spec.name!r} is missing", hint=f"{wanted} of shape {show_shape(spec.shape)}")
    if datatype_of(array.dtype.name) != wanted:
        raise InputError(
            f"input {spec.name!r} is {datatype_of(array.dtype.name)}, the model takes {wanted}",
            hint=f'"datatype": "{wanted}"',
        )
    fits = len(array.shape) == len(spec.shape) and all(
        have == want or (want is None and have > 0) for have, want in zip(array.shape, spec.shape, strict=True)
    )
    if not fits:
        raise InputError(
            f"input {spec.name!r} has shape {show_shape(array.shape)}, the model takes {show_shape(spec.shape)}",
            hint="the batch axis counts; '?' stands for any size of at least 1",
        )
    return _text(array, spec.name) if wanted == "BYTES" else array


def _text(array: NDArray[Any], name: str) -> NDArray[Any]:
    try:
        words = [item.decode() for item in array.reshape(-1).tolist()]
    except UnicodeDecodeError as e:
        raise InputError(f"input {name!r} holds bytes that are not UTF-8", hint="the model takes text") from e
    return np.array(words, object).reshape(array.shape)
