"""What the coordinator of a federated job decides: a pure machine, (job, event) -> (job, effects).

::

    PLANNED -> ANNOUNCED (devices join) -> COLLECTING (a round) -> AVERAGING -> COLLECTING (the next round) ...
            -> AGGREGATED (being rebuilt) -> GATED (good enough) -> PUBLISHED          anywhere -> ABORTED (reason)

The table `TRANSITIONS` is the whole of it: the first row that fits decides, and an event that no row accepts is an
error. Repetitions are rows of their own: a device may join and offer again at any time, and a lost answer costs
nothing. There is one deadline per round, and one for joining.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from edgert.errors import UsageError
from edgert.federated.job import (
    FINAL,
    Aborted,
    Announce,
    Average,
    Averaged,
    Close,
    Confirm,
    Deadline,
    Declined,
    Effect,
    Event,
    Fetch,
    Invite,
    Job,
    Joined,
    Lost,
    Offered,
    Passed,
    Phase,
    Publish,
    Published,
    Rebuild,
    Received,
    Reconnected,
    Refused,
    Resumed,
    Started,
    StartTimer,
    Stopped,
    Withdraw,
)

__all__ = ["TRANSITIONS", "Row", "step"]

Guard: TypeAlias = Callable[[Job, Any], bool]
"""Whether a row accepts an event; its second argument is the event type of the row."""
Action: TypeAlias = Callable[[Job, Any], tuple[Job, list[Effect]]]


@dataclass(frozen=True, slots=True)
class Row:
    """In `state`, on `event`, if `guard`: do `action` and go to `to`."""

    state: Phase
    event: type[Event]
    guard: Guard
    to: Phase
    action: Action


def step(job: Job, event: Event) -> tuple[Job, list[Effect]]:
    """What a job becomes, and what is to be done.

    Raises:
        UsageError: the event does not fit the state.
    """
    for row in TRANSITIONS:
        if row.state is job.phase and row.event is type(event) and row.guard(job, event):
            after, effects = row.action(job, event)
            return after.model_copy(update={"phase": row.to}), effects
    raise UsageError(f"a federated job that is {job.phase} cannot take {event}")


# What an event adds


def _joining(job: Job, event: Joined) -> Job:
    return job.model_copy(update={"joined": job.joined | {event.device}})


def _arrival(job: Job, event: Received) -> Job:
    offered = {device: part for device, part in job.offered.items() if device != event.device}
    received = {**job.received, event.device: job.offered[event.device]}
    return job.model_copy(update={"offered": offered, "received": received})


def _absence(job: Job, event: Declined | Refused) -> Job:
    offered = {device: part for device, part in job.offered.items() if device != event.device}
    declined = {**job.declined, event.device: event.reason}
    return job.model_copy(update={"offered": offered, "declined": declined})


def _complete(job: Job) -> bool:
    return not job.outstanding() and len(job.received) >= job.quorum


def _hopeless(job: Job) -> bool:
    return len(job.joined) - len(job.declined) < job.quorum


# Guards


def _always(job: Job, event: Event) -> bool:
    return True


def _enough(job: Job, event: Joined) -> bool:
    return len(job.joined | {event.device}) >= job.participants


def _quorum_joined(job: Job, event: Deadline) -> bool:
    return event.round == 0 and len(job.joined) >= job.quorum


def _too_few_joined(job: Job, event: Deadline) -> bool:
    return event.round == 0


def _idle(job: Job, event: Joined) -> bool:
    return event.device in job.outstanding() and event.device not in job.offered


def _old_offer(job: Job, event: Offered) -> bool:
    return event.round != job.round or event.device not in job.joined


def _same_again(job: Job, event: Offered) -> bool:
    known = job.received.get(event.device)
    return known is not None and known.digest == event.contribution.digest


def _answered(job: Job, event: Offered) -> bool:
    return event.device not in job.outstanding()


def _under_way(job: Job, event: Offered) -> bool:
    return job.offered.get(event.device) == event.contribution


def _expected(job: Job, event: Received | Refused | Lost) -> bool:
    offer = job.offered.get(event.device)
    return offer is not None and offer.digest == event.digest


def _last_arrival(job: Job, event: Received) -> bool:
    return _expected(job, event) and _complete(_arrival(job, event))


def _this_round(job: Job, event: Declined) -> bool:
    return event.round == job.round and event.device in job.outstanding()


def _is_absence(job: Job, event: Declined | Refused) -> bool:
    return _this_round(job, event) if isinstance(event, Declined) else _expected(job, event)


def _last_absence(job: Job, event: Declined | Refused) -> bool:
    return _is_absence(job, event) and _complete(_absence(job, event))


def _too_many_absent(job: Job, event: Declined | Refused) -> bool:
    return _is_absence(job, event) and _hopeless(_absence(job, event))


def _quorum_met(job: Job, event: Deadline) -> bool:
    return event.round == job.round and len(job.received) >= job.quorum


def _quorum_missed(job: Job, event: Deadline) -> bool:
    return event.round == job.round


def _more_rounds(job: Job, event: Averaged) -> bool:
    return job.round < job.rounds


# Actions


def _nothing(job: Job, event: Event) -> tuple[Job, list[Effect]]:
    return job, []


def _announce(job: Job, event: Event) -> tuple[Job, list[Effect]]:
    return job, [Announce(), StartTimer(job.round)]


def _tell_again(job: Job, event: Event) -> tuple[Job, list[Effect]]:
    idle = [device for device in job.outstanding() if device not in job.offered]
    return job, [Announce(), StartTimer(job.round), *(Invite(device) for device in idle)]


def _collect_again(job: Job, event: Event) -> tuple[Job, list[Effect]]:
    return _tell_again(job.model_copy(update={"offered": {}}), event)


def _note_join(job: Job, event: Joined) -> tuple[Job, list[Effect]]:
    return _joining(job, event), []


def _begin(job: Job, event: Event) -> tuple[Job, list[Effect]]:
    ready = _joining(job, event) if isinstance(event, Joined) else job
    begun = ready.model_copy(update={"round": ready.round + 1, "offered": {}, "received": {}, "declined": {}})
    return begun, [StartTimer(begun.round), *(Invite(device) for device in sorted(begun.joined))]


def _invite_again(job: Job, event: Joined) -> tuple[Job, list[Effect]]:
    return job, [Invite(event.device)]


def _fetch(job: Job, event: Offered) -> tuple[Job, list[Effect]]:
    offered = {**job.offered, event.device: event.contribution}
    return job.model_copy(update={"offered": offered}), [Fetch(event.device, event.contribution)]


def _confirm_again(job: Job, event: Offered) -> tuple[Job, list[Effect]]:
    return job, [Confirm(event.device, event.contribution.digest)]


def _too_late(job: Job, event: Offered) -> tuple[Job, list[Effect]]:
    return job, [Close(event.device, event.round)]


def _arrived(job: Job, event: Received) -> tuple[Job, list[Effect]]:
    return _arrival(job, event), [Confirm(event.device, event.digest)]


def _arrived_average(job: Job, event: Received) -> tuple[Job, list[Effect]]:
    after, effects = _arrived(job, event)
    return after, [*effects, Average()]


def _forget(job: Job, event: Lost) -> tuple[Job, list[Effect]]:
    offered = {device: part for device, part in job.offered.items() if device != event.device}
    return job.model_copy(update={"offered": offered}), []


def _absent(job: Job, event: Declined | Refused) -> tuple[Job, list[Effect]]:
    return _absence(job, event), []


def _absent_average(job: Job, event: Declined | Refused) -> tuple[Job, list[Effect]]:
    return _absence(job, event), [Average()]


def _average(job: Job, event: Event) -> tuple[Job, list[Effect]]:
    return job, [Average()]


def _next_round(job: Job, event: Averaged) -> tuple[Job, list[Effect]]:
    moved, over = _finish_round(job, event)
    begun, effects = _begin(moved, event)
    return begun, [*over, *effects]


def _finish(job: Job, event: Averaged) -> tuple[Job, list[Effect]]:
    moved, over = _finish_round(job, event)
    return moved, [*over, Withdraw(), Rebuild()]


def _finish_round(job: Job, event: Averaged) -> tuple[Job, list[Effect]]:
    moved = job.model_copy(update={"weights": event.weights, "weights_bytes": event.weights_bytes})
    return moved, [Close(device, job.round) for device in sorted(job.joined)]


def _rebuild(job: Job, event: Event) -> tuple[Job, list[Effect]]:
    return job, [Withdraw(), Rebuild()]


def _publish(job: Job, event: Event) -> tuple[Job, list[Effect]]:
    return job, [Publish()]


def _abort(job: Job, event: Event) -> tuple[Job, list[Effect]]:
    after = _absence(job, event) if isinstance(event, Declined | Refused) else job
    closing = [Close(device, job.round) for device in sorted(job.joined) if job.round]
    return after.model_copy(update={"reason": _why(after, event)}), [Withdraw(), *closing]


def _why(job: Job, event: Event) -> str:
    if isinstance(event, Aborted | Stopped):
        return event.reason
    absences = "; ".join(f"{device}: {reason}" for device, reason in sorted(job.declined.items()))
    have = f"{len(job.received)} updates of {len(job.joined)} devices" if job.round else f"{len(job.joined)} devices"
    where = f"round {job.round}" if job.round else "joining"
    return f"{where}: {have}, the quorum is {job.quorum}" + (f" ({absences})" if absences else "")


_PLANNED, _ANNOUNCED, _COLLECTING, _AVERAGING = Phase.PLANNED, Phase.ANNOUNCED, Phase.COLLECTING, Phase.AVERAGING
_AGGREGATED, _GATED, _PUBLISHED, _ABORTED = Phase.AGGREGATED, Phase.GATED, Phase.PUBLISHED, Phase.ABORTED
_BUSY: Final = (_AVERAGING, _AGGREGATED, _GATED)
_LATER: Final = (*_BUSY, _PUBLISHED, _ABORTED)
_SIGNED: Final = (_GATED, _PUBLISHED, _ABORTED)
_LATE: Final[tuple[type[Event], ...]] = (Joined, Declined, Received, Refused, Lost, Deadline)

TRANSITIONS: Final = (
    # state            event        guard              to            action
    Row(_PLANNED,     Started,     _always,           _ANNOUNCED,   _announce),
    Row(_ANNOUNCED,   Resumed,     _always,           _ANNOUNCED,   _announce),
    Row(_ANNOUNCED,   Reconnected, _always,           _ANNOUNCED,   _announce),
    Row(_ANNOUNCED,   Joined,      _enough,           _COLLECTING,  _begin),
    Row(_ANNOUNCED,   Joined,      _always,           _ANNOUNCED,   _note_join),
    Row(_ANNOUNCED,   Deadline,    _quorum_joined,    _COLLECTING,  _begin),
    Row(_ANNOUNCED,   Deadline,    _too_few_joined,   _ABORTED,     _abort),
    Row(_COLLECTING,  Resumed,     _always,           _COLLECTING,  _collect_again),
    Row(_COLLECTING,  Reconnected, _always,           _COLLECTING,  _tell_again),
    Row(_COLLECTING,  Joined,      _idle,             _COLLECTING,  _invite_again),
    Row(_COLLECTING,  Joined,      _always,           _COLLECTING,  _nothing),
    Row(_COLLECTING,  Offered,     _old_offer,        _COLLECTING,  _too_late),
    Row(_COLLECTING,  Offered,     _same_again,       _COLLECTING,  _confirm_again),
    Row(_COLLECTING,  Offered,     _answered,         _COLLECTING,  _too_late),
    Row(_COLLECTING,  Offered,     _under_way,        _COLLECTING,  _nothing),
    Row(_COLLECTING,  Offered,     _always,           _COLLECTING,  _fetch),
    Row(_COLLECTING,  Received,    _last_arrival,     _AVERAGING,   _arrived_average),
    Row(_COLLECTING,  Received,    _expected,         _COLLECTING,  _arrived),
    Row(_COLLECTING,  Received,    _always,           _COLLECTING,  _nothing),
    Row(_COLLECTING,  Refused,     _too_many_absent,  _ABORTED,     _abort),
    Row(_COLLECTING,  Refused,     _last_absence,     _AVERAGING,   _absent_average),
    Row(_COLLECTING,  Refused,     _expected,         _COLLECTING,  _absent),
    Row(_COLLECTING,  Refused,     _always,           _COLLECTING,  _nothing),
    Row(_COLLECTING,  Lost,        _expected,         _COLLECTING,  _forget),
    Row(_COLLECTING,  Lost,        _always,           _COLLECTING,  _nothing),
    Row(_COLLECTING,  Declined,    _too_many_absent,  _ABORTED,     _abort),
    Row(_COLLECTING,  Declined,    _last_absence,     _AVERAGING,   _absent_average),
    Row(_COLLECTING,  Declined,    _this_round,       _COLLECTING,  _absent),
    Row(_COLLECTING,  Declined,    _always,           _COLLECTING,  _nothing),
    Row(_COLLECTING,  Deadline,    _quorum_met,       _AVERAGING,   _average),
    Row(_COLLECTING,  Deadline,    _quorum_missed,    _ABORTED,     _abort),
    Row(_COLLECTING,  Deadline,    _always,           _COLLECTING,  _nothing),
    Row(_AVERAGING,   Resumed,     _always,           _AVERAGING,   _average),
    Row(_AVERAGING,   Reconnected, _always,           _AVERAGING,   _nothing),
    Row(_AVERAGING,   Averaged,    _more_rounds,      _COLLECTING,  _next_round),
    Row(_AVERAGING,   Averaged,    _always,           _AGGREGATED,  _finish),
    Row(_AGGREGATED,  Resumed,     _always,           _AGGREGATED,  _rebuild),
    Row(_AGGREGATED,  Reconnected, _always,           _AGGREGATED,  _nothing),
    Row(_AGGREGATED,  Passed,      _always,           _GATED,       _publish),
    Row(_GATED,       Resumed,     _always,           _AGGREGATED,  _rebuild),
    Row(_GATED,       Reconnected, _always,           _GATED,       _nothing),
    Row(_GATED,       Published,   _always,           _PUBLISHED,   _nothing),
    *(Row(state, Offered, _same_again, state, _confirm_again) for state in _BUSY),
    *(Row(state, Offered, _always, state, _too_late) for state in _LATER),
    *(Row(state, late, _always, state, _nothing) for state in _LATER for late in _LATE),
    *(Row(state, Stopped, _always, _ABORTED, _abort) for state in Phase if state not in _SIGNED),
    *(Row(state, Stopped, _always, state, _nothing) for state in _SIGNED),
    *(Row(state, Aborted, _always, _ABORTED, _abort) for state in Phase if state not in FINAL),
)  # fmt: skip
