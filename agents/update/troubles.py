"""Which troubles of an update delay it, which fail it for now, and which fail it until a new assignment asks again."""

from typing import Any

from agents.update.machine import Event, State
from edgert.errors import (
    EdgeRTError,
    LinkError,
    MessageError,
    NotFoundError,
    RefusedError,
    StoreError,
    TransferError,
)
from edgert.wire.twin import Phase

__all__ = ["outcome", "stopped"]


def outcome(phase: Phase, error: EdgeRTError) -> Event:
    """The event that an error is to the machine in that phase."""
    words: dict[str, Any] = {"error": error.message, "hint": error.hint}
    lost = isinstance(error, LinkError | TransferError) and not isinstance(error, NotFoundError)
    if lost and phase in ("CHECK", "DOWNLOAD"):
        return Event(kind="delayed", **words)
    passing = {
        "CHECK": isinstance(error, RefusedError | NotFoundError | MessageError | StoreError),
        "PLAN": isinstance(error, StoreError),
        "DOWNLOAD": isinstance(error, NotFoundError | StoreError),
        "VERIFY": True,
        "STAGE": isinstance(error, StoreError),
    }
    return Event(kind="failed", passing=passing.get(phase, False), **words)


def stopped(state: State, error: StoreError) -> State:
    """The state of a machine whose journal cannot be written: nothing is done, and it is tried again."""
    return state.model_copy(
        update={
            "phase": "FAILED",
            "error": error.message,
            "hint": error.hint,
            "passing": True,
            "failures": state.failures + 1,
        }
    )
