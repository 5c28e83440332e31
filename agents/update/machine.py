"""What an update of one model decides: a pure machine, one instance per model.

`step` gives the next state and what to do; `agents.update.execute` does it. The state is journalled before anything is
done, and everything that is done may be done again, so a box that loses power anywhere goes on where it was.
"""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgert.errors import FaultError, RefusedError
from edgert.manifest import Name
from edgert.store import Slot, SlotName, Store
from edgert.wire.twin import Assignment, Phase

__all__ = ["RESTING", "TRANSITIONS", "Effect", "Event", "Kind", "State", "step", "wanted", "withdrawal"]

Kind = Literal["assigned", "satisfied", "withdrawn", "retried", "resumed", "passed", "delayed", "failed"]
"""assigned: a bundle that is not the active one; satisfied: the active one; withdrawn: the operator of the box wants
the other slot; retried: the pause after a passing refusal is over; resumed: the agent started; passed, delayed,
failed: how the effect of the phase ended (delayed = the way to the server failed, try again)."""

Effect = Literal[
    "journal", "report", "check", "plan", "download", "verify", "stage", "trial", "switch", "commit", "rollback"
]


class State(BaseModel):
    """Where the update of one model stands.

    Args:
        assignment, revision: what is (or was last) being updated to, and the Desired that asked for it.
        slot: where the new bundle was staged.
        back: the slot that answered before; None when there was none.
        attempts: delays since this phase began.
        passing: the failure may pass without a new assignment (metadata, disk): try again after a pause.
        failures: passing failures in a row.
        error, hint: why it failed, or why it waits.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    format: Literal[1] = 1
    model: Name
    phase: Phase = "IDLE"
    assignment: Assignment | None = None
    revision: int = 0
    slot: SlotName | None = None
    back: SlotName | None = None
    attempts: int = Field(default=0, ge=0)
    passing: bool = False
    failures: int = Field(default=0, ge=0)
    error: str = ""
    hint: str = ""


class Event(BaseModel):
    """What happened.

    Args:
        assignment, revision: with `assigned`, `satisfied` and `withdrawn`.
        slot: with the `passed` of STAGE: where the bundle is.
        back: with the `passed` of STAGE and with `withdrawn`: the slot to go back to.
        passing: with `failed`: it may pass by itself.
        error, hint: with `failed`, `delayed` and `withdrawn`.
    """

    model_config = ConfigDict(frozen=True)
    kind: Kind
    assignment: Assignment | None = None
    revision: int = 0
    slot: SlotName | None = None
    back: SlotName | None = None
    passing: bool = False
    error: str = ""
    hint: str = ""


RESTING: Final[frozenset[Phase]] = frozenset({"IDLE", "FAILED"})
"""Phases in which nothing is under way."""

# fmt: off
TRANSITIONS: Final[dict[tuple[Phase, Kind], tuple[Phase, tuple[Effect, ...]]]] = {
    # phase      event           next         then
    ("IDLE",     "assigned"):  ("CHECK",    ("journal", "report", "check")),
    ("IDLE",     "satisfied"): ("IDLE",     ("journal", "report")),
    ("IDLE",     "withdrawn"): ("ROLLBACK", ("journal", "report", "rollback")),
    ("IDLE",     "resumed"):   ("IDLE",     ("report",)),

    ("CHECK",    "passed"):    ("PLAN",     ("journal", "report", "plan")),
    ("CHECK",    "delayed"):   ("CHECK",    ("journal", "report", "check")),
    ("CHECK",    "failed"):    ("FAILED",   ("journal", "report")),
    ("CHECK",    "assigned"):  ("CHECK",    ("journal", "report", "check")),
    ("CHECK",    "satisfied"): ("IDLE",     ("journal", "report")),
    ("CHECK",    "resumed"):   ("CHECK",    ("report", "check")),

    ("PLAN",     "passed"):    ("DOWNLOAD", ("journal", "report", "download")),
    ("PLAN",     "failed"):    ("FAILED",   ("journal", "report")),
    ("PLAN",     "assigned"):  ("CHECK",    ("journal", "report", "check")),
    ("PLAN",     "satisfied"): ("IDLE",     ("journal", "report")),
    ("PLAN",     "resumed"):   ("PLAN",     ("report", "plan")),

    ("DOWNLOAD", "passed"):    ("VERIFY",   ("journal", "report", "verify")),
    ("DOWNLOAD", "delayed"):   ("DOWNLOAD", ("journal", "report", "download")),
    ("DOWNLOAD", "failed"):    ("FAILED",   ("journal", "report")),
    ("DOWNLOAD", "assigned"):  ("CHECK",    ("journal", "report", "check")),
    ("DOWNLOAD", "satisfied"): ("IDLE",     ("journal", "report")),
    ("DOWNLOAD", "resumed"):   ("DOWNLOAD", ("report", "download")),

    ("VERIFY",   "passed"):    ("STAGE",    ("journal", "report", "stage")),
    ("VERIFY",   "failed"):    ("FAILED",   ("journal", "report")),
    ("VERIFY",   "assigned"):  ("CHECK",    ("journal", "report", "check")),
    ("VERIFY",   "satisfied"): ("IDLE",     ("journal", "report")),
    ("VERIFY",   "resumed"):   ("VERIFY",   ("report", "verify")),

    ("STAGE",    "passed"):    ("TRIAL",    ("journal", "report", "trial")),
    ("STAGE",    "failed"):    ("FAILED",   ("journal", "report")),
    ("STAGE",    "assigned"):  ("CHECK",    ("journal", "report", "check")),
    ("STAGE",    "satisfied"): ("IDLE",     ("journal", "report")),
    ("STAGE",    "resumed"):   ("STAGE",    ("report", "stage")),

    ("TRIAL",    "passed"):    ("SWITCH",   ("journal", "report", "switch")),
    ("TRIAL",    "failed"):    ("ROLLBACK", ("journal", "report", "rollback")),
    ("TRIAL",    "assigned"):  ("CHECK",    ("journal", "report", "check")),
    ("TRIAL",    "satisfied"): ("IDLE",     ("journal", "report")),
    ("TRIAL",    "resumed"):   ("TRIAL",    ("report", "trial")),

    ("SWITCH",   "passed"):    ("COMMIT",   ("journal", "report", "commit")),
    ("SWITCH",   "failed"):    ("ROLLBACK", ("journal", "report", "rollback")),
    ("SWITCH",   "resumed"):   ("SWITCH",   ("report", "switch")),

    ("COMMIT",   "passed"):    ("IDLE",     ("journal", "report")),
    ("COMMIT",   "resumed"):   ("COMMIT",   ("report", "commit")),

    ("ROLLBACK", "passed"):    ("FAILED",   ("journal", "report")),
    ("ROLLBACK", "failed"):    ("FAILED",   ("journal", "report")),
    ("ROLLBACK", "resumed"):   ("ROLLBACK", ("report", "rollback")),

    ("FAILED",   "assigned"):  ("CHECK",    ("journal", "report", "check")),
    ("FAILED",   "satisfied"): ("IDLE",     ("journal", "report")),
    ("FAILED",   "withdrawn"): ("ROLLBACK", ("journal", "report", "rollback")),
    ("FAILED",   "retried"):   ("CHECK",    ("journal", "report", "check")),
    ("FAILED",   "resumed"):   ("FAILED",   ("report",)),
}
# fmt: on


def step(state: State, event: Event) -> tuple[State, list[Effect]]:
    """The next state, and what to do in that order.

    Raises:
        FaultError: no row of `TRANSITIONS` accepts the event in this phase.
    """
    row = TRANSITIONS.get((state.phase, event.kind))
    if row is None:
        raise FaultError(
            f"update of {state.model}: nothing is said about {event.kind!r} in phase {state.phase}",
            hint="this is a fault of EdgeRT: please report it",
        )
    phase, effects = row
    return _noted(state, event).model_copy(update={"phase": phase}), list(effects)


def wanted(state: State, assignment: Assignment | None, revision: int, active: Slot | None) -> Kind | None:
    """What an accepted assignment means to this machine; None when it says nothing new.

    A version that failed is not tried again until a Desired with another revision asks for it. When the fleet no
    longer assigns the model, what answers goes on answering, and what is under way or waits for another try ends.

    Args:
        assignment: None when the Desired does not name the model.
        active: what answers now.
    """
    if assignment is None:
        return None if state.phase == "IDLE" or (state.phase == "FAILED" and not state.passing) else "satisfied"
    under_way = state.assignment == assignment and state.phase not in ("IDLE", "FAILED")
    settled = state.phase == "FAILED" and state.assignment == assignment and state.revision == revision
    if under_way or settled:
        return None
    if active is not None and (active.digest, active.version) == (assignment.digest, assignment.version):
        same = state.phase == "IDLE" and state.assignment == assignment and state.revision == revision
        return None if same else "satisfied"
    return "assigned"


def withdrawal(store: Store, model: str, revision: int) -> Event:
    """The event that brings `model` back to its other slot.

    Raises:
        RefusedError: there is nothing to go back to.
    """
    active, other = store.active(model), store.spare(model)
    if active is None:
        raise RefusedError(f"no model {model} answers on this box", hint="see `edgert agent status`")
    before, now = store.slot(model, other), store.slot(model, active)
    if before is None or now is None or not store.has(before.digest):
        raise RefusedError(f"the other slot of {model} is empty", hint="there is no earlier version on this box")
    return Event(
        kind="withdrawn",
        back=other,
        revision=revision,
        error=f"taken back from version {now.version} to {before.version} on this box",
        hint="a new rollout updates it again",
    )


def _noted(state: State, event: Event) -> State:
    match event.kind:
        case "assigned" | "satisfied":
            return State(model=state.model, assignment=event.assignment, revision=event.revision)
        case "withdrawn":
            why = {"error": event.error, "hint": event.hint, "passing": False}
            return state.model_copy(update={"back": event.back, "revision": event.revision, **why})
        case "delayed":
            return state.model_copy(update={"attempts": state.attempts + 1, "error": event.error, "hint": event.hint})
        case "failed" if state.phase != "ROLLBACK":
            failures = state.failures + 1 if event.passing else 0
            why = {"error": event.error, "hint": event.hint, "passing": event.passing}
            return state.model_copy(update={"failures": failures, "attempts": 0, **why})
        case "passed" if state.phase == "STAGE":
            return _cleared(state).model_copy(update={"slot": event.slot, "back": event.back})
        case "passed" if state.phase != "ROLLBACK":
            return _cleared(state)
        case "retried":
            return _cleared(state)
        case _:
            return state.model_copy(update={"attempts": 0})


def _cleared(state: State) -> State:
    return state.model_copy(update={"attempts": 0, "error": "", "hint": "", "passing": False})
