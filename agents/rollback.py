"""Going back to the other slot on the box itself, without network: through the running agent, or in its place."""

from collections.abc import Callable
from pathlib import Path

from agents import control
from agents.state import StateFolder
from agents.update import journal
from agents.update.machine import RESTING, Event, step, withdrawal
from edgert.clock import SystemClock
from edgert.errors import FaultError, UsageError
from edgert.store import Store
from edgert.values import is_name

__all__ = ["take_back"]


def take_back(folder: Path, model: str, *, pause: Callable[[float], None]) -> None:
    """Make the other slot of `model` the active one.

    What was assigned is not followed again until the fleet assigns anew.

    Args:
        pause: waits some seconds.

    Raises:
        UsageError: no state folder, or no such name.
        RefusedError: there is no other version on this box.
        FaultError: an update is under way.
    """
    if not (folder / "identity").is_dir() or not is_name(model):
        raise UsageError(
            f"{folder} is not the state folder of an agent with model {model[:80]!r}",
            hint="give the agent's --state folder, and a model that `edgert agent status` lists",
        )
    state = StateFolder(folder)
    if state.held():
        control.ask(state.control, control.Request(model=model), SystemClock(), pause)
        return
    with state.locked(pause):
        _in_place(state, model)


def _in_place(state: StateFolder, model: str) -> None:
    """What the agent would do, with the same journal; there is no inference process to tell."""
    store, path = Store(state.store), state.journal / f"{model}.json"
    now = journal.read(path, model)
    if now.phase not in RESTING:
        raise FaultError(f"an update of {model} was interrupted in {now.phase}", hint="start the agent to finish it")
    now, _ = step(now, withdrawal(store, model, state.memory().revision))
    journal.write(path, now)
    if now.back is not None:
        store.switch(model, now.back)
    now, _ = step(now, Event(kind="passed"))
    journal.write(path, now)
