"""Requests of the command line to a running agent: small files in the ``control`` folder, answered beside them.

``<name>.request`` holds a `Request`; the agent removes it and writes ``<name>.answer``. Only who may write the state
folder can ask.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from agents.update.machine import State
from edgert.clock import Clock
from edgert.errors import EdgeRTError, FaultError, RefusedError, StoreError
from edgert.files import write_durable
from edgert.manifest import Name

__all__ = ["Answer", "Control", "Request", "ask"]

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_PATIENCE_S = 20.0


class Request(BaseModel):
    """Go back to the other slot of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    verb: Literal["rollback"] = "rollback"
    model: Name


class Answer(BaseModel):
    """What came of it."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    error: str = ""
    hint: str = ""
    refused: bool = False


class Withdrawals(Protocol):
    """Takes models back (`agents.update.execute.Updates`)."""

    def withdraw(self, model: str, revision: int) -> "asyncio.Future[State]": ...


class Control:
    """The agent's half.

    Args:
        revision: of the assignment that is followed; what it says of the model no longer counts.
    """

    def __init__(self, folder: Path, updates: Withdrawals, revision: Callable[[], int]) -> None:
        self._folder = folder
        self._updates = updates
        self._revision = revision

    async def run(self) -> None:
        """Answer requests until cancelled.

        Raises:
            StoreError: the disk is full or read-only.
        """
        for left in self._folder.glob("*"):
            _removed(left)
        while True:
            for path in sorted(self._folder.glob("*.request")):
                answer = await self._answered(path)
                _removed(path)
                await asyncio.to_thread(
                    write_durable, path.with_suffix(".answer"), answer.model_dump_json().encode(), mode=0o600
                )
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _answered(self, path: Path) -> Answer:
        try:
            request = Request.model_validate_json(path.read_bytes())
            async with asyncio.timeout(_PATIENCE_S):
                state = await self._updates.withdraw(request.model, self._revision())
        except TimeoutError:
            return Answer(
                error=f"an update of {request.model} is under way", hint="see `edgert agent status`, then ask again"
            )
        except (OSError, ValidationError):
            return Answer(error="the request cannot be understood", hint="use the `edgert` of the running agent")
        except EdgeRTError as e:
            return Answer(error=e.message, hint=e.hint, refused=isinstance(e, RefusedError))
        logger.warning("%s: %s", request.model, state.error)
        return Answer()


def _removed(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        raise StoreError(f"cannot remove {path}: {e.strerror}", hint="check the disk and its permissions") from e


def ask(folder: Path, request: Request, clock: Clock, pause: Callable[[float], None], deadline_s: float = 30) -> None:
    """Ask a running agent and wait for its answer: the command line's half.

    Raises:
        RefusedError: the agent refused.
        FaultError: it failed, or gave no answer in time; then the request is taken back.
    """
    name = secrets.token_hex(8)
    path, answer_path = folder / f"{name}.request", folder / f"{name}.answer"
    write_durable(path, request.model_dump_json().encode(), mode=0o600)
    until = clock.monotonic() + deadline_s
    try:
        while not answer_path.is_file():
            if clock.monotonic() > until:
                raise FaultError(
                    f"the running agent did not take {request.model} back in {deadline_s:g} s",
                    hint="see its log and `edgert agent status`",
                )
            pause(0.1)
        answer = Answer.model_validate_json(answer_path.read_bytes())
    finally:
        path.unlink(missing_ok=True)
        answer_path.unlink(missing_ok=True)
    if answer.error:
        raise (RefusedError if answer.refused else FaultError)(answer.error, hint=answer.hint)
