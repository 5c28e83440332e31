"""What each model of a box is, from its slots and its update machine."""

from collections.abc import Mapping

from agents.update.machine import State
from edgert.store import Store
from edgert.wire.twin import ModelState

__all__ = ["model_states"]


def model_states(store: Store, states: Mapping[str, State]) -> dict[str, ModelState]:
    """The state of every model that has a slot or a machine, by name."""
    found = {}
    for model in sorted({*store.models(), *states}):
        state = states.get(model, State(model=model))
        slot = store.active_slot(model)
        target = 0 if state.phase == "IDLE" or state.assignment is None else state.assignment.version
        found[model] = ModelState(
            version=0 if slot is None else slot.version,
            digest=None if slot is None else slot.digest,
            slot=store.active(model) or "",
            phase=state.phase,
            target_version=target,
            error=state.error,
            hint=state.hint,
        )
    return found
