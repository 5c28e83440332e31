"""What each model of a box is, from its slots and its update machine."""

from collections.abc import Mapping
from typing import Literal

from agents.update.machine import State
from edgert.errors import StoreError
from edgert.store import Slot, SlotName, Store
from edgert.wire.twin import ModelState

__all__ = ["model_states"]


def model_states(store: Store, states: Mapping[str, State]) -> dict[str, ModelState]:
    """The state of every model that has a slot or a machine, by name."""
    found = {}
    for model in sorted({*store.models(), *states}):
        state = states.get(model, State(model=model))
        slot, name, damage = _active(store, model)
        target = 0 if state.phase == "IDLE" or state.assignment is None else state.assignment.version
        found[model] = ModelState(
            version=0 if slot is None else slot.version,
            digest=None if slot is None else slot.digest,
            slot=name,
            phase=state.phase,
            target_version=target,
            error=state.error or damage,
            hint=state.hint if state.error or not damage else "the next update of the model mends it",
        )
    return found


def _active(store: Store, model: str) -> tuple[Slot | None, SlotName | Literal[""], str]:
    """What answers by the folder, in which slot, and what is wrong with it."""
    try:
        return store.active_slot(model), store.active(model) or "", ""
    except StoreError as e:
        return None, "", e.message
