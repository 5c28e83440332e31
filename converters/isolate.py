"""Parsing and rewriting a graph from outside in a child process with a deadline and a memory limit.

The native code behind parsing, opset conversion and constant folding can be made to crash, hang or eat all memory by a
hostile or merely odd file. It does so here in a child, and the parent says what happened. The child half is
``python -P -m converters.isolate``: a request (JSON) on standard input, an answer (JSON) on standard output. Nothing is
imported from the folder the user happens to be in.
"""

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from pydantic import BaseModel, ConfigDict, ValidationError

from converters.importers.base import Importer
from edgert import plugins, watch
from edgert.errors import EdgeRTError, FaultError, ModelError, SamplesError

__all__ = ["Prepared", "main", "prepare"]

_IMPORTERS = "converters.importers"
_TIMEOUT_S = 90.0
_MEMORY_BYTES = 6 << 30
_IMPORTED, _CLEANED = "imported.onnx", "cleaned.onnx"


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True)
    model: Path
    weights: Path | None
    folder: Path


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)
    notes: tuple[str, ...] = ()
    error: str = ""
    hint: str = ""
    kind: Literal["model", "samples", "other"] = "other"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that was taken in.

    Args:
        imported: in canonical form, every initializer under its own name, new weights put in.
        cleaned: the same computation, slimmer.
        notes: what could not be done.
    """

    imported: onnx.ModelProto
    cleaned: onnx.ModelProto
    notes: tuple[str, ...]


def prepare(model: Path, folder: Path, *, weights: Path | None = None, timeout_s: float = _TIMEOUT_S) -> Prepared:
    """Import a model file, put new weights in, bring it into canonical form and clean it up, all in a child process.

    Args:
        folder: a scratch folder; the child writes nowhere else.

    Raises:
        ModelError: the file cannot be used; or reading it crashed, took too long or too much memory.
        SamplesError: the weights do not fit the model.
        TrialError: this machine cannot start a child process at all.
    """
    request = _Request(model=model.absolute(), weights=weights and weights.absolute(), folder=folder.absolute())
    answer, trouble = _call(request, timeout_s)
    imported = folder / _IMPORTED
    if answer is not None and answer.error:
        kinds: dict[str, type[EdgeRTError]] = {"model": ModelError, "samples": SamplesError, "other": FaultError}
        raise kinds[answer.kind](answer.error, answer.hint)
    if not imported.exists():
        raise ModelError(f"{model} cannot be read: {trouble}", hint="the file may be damaged or hostile")
    cleaned = folder / _CLEANED
    notes = answer.notes if answer is not None else (f"clean-up left out: {trouble}",)
    return Prepared(onnx.load(imported), onnx.load(cleaned if answer is not None else imported), notes)


def _call(request: _Request, timeout_s: float) -> tuple[_Answer | None, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TMPDIR": str(request.folder)}
    ended = watch.converse(
        [sys.executable, "-P", "-m", "converters.isolate"],
        request.model_dump_json().encode(),
        timeout_s=timeout_s,
        environment=environment,
    )
    try:
        return _Answer.model_validate_json(ended.said), ""
    except ValidationError:
        return None, f"the reading process {ended.trouble or 'ended without an answer'}"


def main() -> int:
    """The child half."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = watch.private_stdout()
    request = _Request.model_validate_json(sys.stdin.buffer.read())
    try:
        answer = _prepare(request)
    except ModelError as e:
        answer = _Answer(error=e.message, hint=e.hint, kind="model")
    except SamplesError as e:
        answer = _Answer(error=e.message, hint=e.hint, kind="samples")
    except EdgeRTError as e:
        answer = _Answer(error=e.message, hint=e.hint)
    except MemoryError:
        answer = _Answer(error=f"{request.model} needs too much memory to be read", kind="model")
    answers.write(answer.model_dump_json())
    answers.flush()
    return 0


def _prepare(request: _Request) -> _Answer:
    from converters import checks, weights
    from converters.optimize.normalise import normalise

    loaded = _importer_for(request.model).load(request.model)
    checks.check(loaded, request.model)
    imported, notes = normalise(loaded)
    if request.weights is not None:
        weights.put(imported, request.weights)
    _save(imported, request.folder / _IMPORTED)

    from converters.optimize.clean import clean  # only now: a refusal need not wait for it

    cleaned, more = clean(imported)
    _save(cleaned, request.folder / _CLEANED)
    return _Answer(notes=notes + more)


def _importer_for(path: Path) -> Importer:
    importers: list[Importer] = [plugins.load(_IMPORTERS, name) for name in plugins.names(_IMPORTERS)]
    for importer in importers:
        if importer.accepts(path):
            return importer
    known = ", ".join(suffix for importer in importers for suffix in importer.suffixes)
    raise ModelError(f"{path}: no importer takes a file of this name", hint=f"known suffixes: {known}")


def _save(model: onnx.ModelProto, path: Path) -> None:
    from converters.graph import serialize

    temporary = path.with_suffix(".part")
    temporary.write_bytes(serialize(model))
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
