"""New weights back to a bundle: the same recipe, in a child process, and a gate on what was measured.

The child is ``edgert convert SOURCE --weights w.npz``: conversion's libraries never come into this process, and a
crash or a hang of theirs ends a job, not the server.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgert.errors import CheckError, FaultError

__all__ = ["Rebuilder", "Rebuilt", "gate", "rebuild"]

logger = logging.getLogger(__name__)

_OUTPUT_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A bundle made of new weights.

    Args:
        bundle: the file; its Source lies beside it.
        accuracy: fraction of the Source's evaluation samples that it gets right.
    """

    bundle: Path
    accuracy: float


class Rebuilder(Protocol):
    """Anything that does what `rebuild` does."""

    async def __call__(self, source: Path, weights: Path, bundle: Path, *, timeout_s: float) -> Rebuilt: ...


async def rebuild(source: Path, weights: Path, bundle: Path, *, timeout_s: float) -> Rebuilt:
    """Convert a Source with new weights.

    Args:
        source: as `edgert convert` wrote it.
        weights: ``.npz`` of float32 arrays by initializer name.
        bundle: where to write the new bundle.

    Raises:
        CheckError: the conversion refused: budget, parity, or weights that do not fit.
        FaultError: it died or took too long.
    """
    command = (sys.executable, "-P", "-m", "edgert", "convert", source, "--weights", weights, "--json", "-o", bundle)
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_s):
            output = await _said(child)
            await child.wait()
    except TimeoutError as e:
        raise FaultError(
            f"the conversion of {source.name} took more than {timeout_s:g} s",
            hint="give it more with rebuild_timeout_s in ota.toml",
        ) from e
    finally:
        await _end(child)
    result = _parsed(output, child.returncode)
    logger.info("rebuilt %s: accuracy %.4f", bundle.name, result["accuracy"])
    return Rebuilt(bundle, float(result["accuracy"]))


def gate(accuracy: float, base_accuracy: float, points: float) -> None:
    """Let only a model pass that is at most `points` (of 100) less accurate than the release it came from.

    Raises:
        CheckError: it is worse.
    """
    if accuracy < base_accuracy - points / 100:
        raise CheckError(
            f"the rebuilt model has accuracy {accuracy:.4f}, the release it came from {base_accuracy:.4f}: "
            f"more than {points:g} points worse",
            hint="were the devices' examples labelled right? is the learning rate too high?",
        )


async def _said(child: asyncio.subprocess.Process) -> bytes:
    """All that the child writes; one that writes without end is not listened to."""
    if child.stdout is None:
        return b""
    try:
        await child.stdout.readexactly(_OUTPUT_LIMIT_BYTES + 1)
    except asyncio.IncompleteReadError as e:
        return e.partial
    raise FaultError(
        f"the conversion wrote more than {_OUTPUT_LIMIT_BYTES} bytes", hint="try `edgert convert SOURCE --json` by hand"
    )


async def _end(child: asyncio.subprocess.Process) -> None:
    """End the child and everything it started, if it still runs."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()


def _parsed(output: bytes, code: int | None) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(output)
    except ValueError as e:
        raise FaultError(
            f"the conversion died with exit code {code}", hint="try `edgert convert SOURCE --weights` by hand"
        ) from e
    if code != 0 or not isinstance(result.get("accuracy"), int | float):
        why = result.get("error", "no accuracy was measured")
        raise CheckError(f"the conversion failed: {why}", hint=str(result.get("hint", "")))
    return result
