"""The journal of one model's update: its state, durable before anything is done."""

import logging
from pathlib import Path

from pydantic import ValidationError

from agents.update.machine import State
from edgert.files import write_durable

__all__ = ["read", "write"]

logger = logging.getLogger(__name__)


def read(path: Path, model: str) -> State:
    """The state in the journal; a fresh one when there is none or it is damaged.

    A damaged journal costs nothing but work: the slots are kept apart from it, and the next assignment begins anew.
    """
    try:
        state = State.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return State(model=model)
    except (OSError, ValidationError) as e:
        logger.error("the journal of %s is damaged and was left out: %s", model, type(e).__name__)
        return State(model=model)
    return state if state.model == model else State(model=model)


def write(path: Path, state: State) -> None:
    """Replace the journal durably.

    Raises:
        StoreError: the disk is full or read-only.
    """
    write_durable(path, state.model_dump_json().encode())
