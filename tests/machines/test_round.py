"""The coordinator's machine, from its table: every row is taken, everything else is refused, no update is lost."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.errors import UsageError
from edgert.federated.job import (
    FINAL,
    Aborted,
    Announce,
    Average,
    Averaged,
    Close,
    Confirm,
    Contribution,
    Deadline,
    Declined,
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
from edgert.federated.round import TRANSITIONS, Row, step
from edgert.values import digest


def part(name: str, examples: int = 10) -> Contribution:
    return Contribution(digest=digest(name.encode()), size_bytes=100, examples=examples, loss=0.5)


ONE, OTHER = part("one"), part("other")
FRESH = Job(participants=2, quorum=1, rounds=2, weights=digest(b"w"), weights_bytes=100)
ROUND = FRESH.model_copy(update={"round": 1, "joined": frozenset({"a", "b"})})
DATA = (
    FRESH,
    FRESH.model_copy(update={"joined": frozenset({"a"})}),
    ROUND,
    ROUND.model_copy(update={"offered": {"a": ONE}}),
    ROUND.model_copy(update={"offered": {"a": ONE, "b": OTHER}, "quorum": 2}),
    ROUND.model_copy(update={"received": {"a": ONE}}),
    ROUND.model_copy(update={"received": {"a": ONE}, "offered": {"b": OTHER}}),
    ROUND.model_copy(update={"declined": {"a": "busy"}, "offered": {"b": ONE}}),
    ROUND.model_copy(update={"declined": {"a": "busy"}}),
    ROUND.model_copy(update={"received": {"a": ONE, "b": OTHER}}),
    ROUND.model_copy(update={"round": 2, "received": {"a": ONE, "b": OTHER}}),
)
EVENTS: tuple[Event, ...] = (
    Started(),
    Resumed(),
    Reconnected(),
    *(Joined(device) for device in "abc"),
    *(Offered(device, number, offer) for device in "abc" for number in (1, 2) for offer in (ONE, OTHER)),
    *(Declined(device, number, "busy") for device in "abc" for number in (1, 2)),
    *(kind(device, offer.digest) for kind in (Received, Lost) for device in "abc" for offer in (ONE, OTHER)),
    *(Refused(device, offer.digest, "not finite") for device in "abc" for offer in (ONE, OTHER)),
    *(Deadline(number) for number in (0, 1, 2)),
    Averaged(digest(b"new"), 120),
    Passed(),
    Published(),
    Aborted("the gate is shut"),
    Stopped("stopped by an operator"),
)
CASES = [(data.model_copy(update={"phase": phase}), event) for phase in Phase for data in DATA for event in EVENTS]
TYPES = {type(event) for event in EVENTS}


def row_of(job: Job, event: Event) -> Row | None:
    fitting = (row for row in TRANSITIONS if row.state is job.phase and row.event is type(event))
    return next((row for row in fitting if row.guard(job, event)), None)


def test_every_row_of_the_table_is_taken_by_some_case() -> None:
    taken = {TRANSITIONS.index(row) for row in itertools.starmap(row_of, CASES) if row is not None}
    assert [TRANSITIONS[index] for index in set(range(len(TRANSITIONS))) - taken] == []


def test_every_row_leads_where_it_says() -> None:
    for job, event in CASES:
        row = row_of(job, event)
        if row is not None:
            after, _ = step(job, event)
            assert after.phase is row.to


def test_every_event_that_no_row_accepts_is_an_error() -> None:
    refused = [(job, event) for job, event in CASES if row_of(job, event) is None]
    assert {(job.phase, type(event)) for job, event in refused} >= {
        (phase, kind)
        for phase in Phase
        for kind in TYPES
        if not any(r.state is phase and r.event is kind for r in TRANSITIONS)
    }
    for job, event in refused:
        with pytest.raises(UsageError):
            step(job, event)


def test_a_final_job_never_changes() -> None:
    for job, event in CASES:
        if job.phase in FINAL and row_of(job, event) is not None:
            after, effects = step(job, event)
            assert after == job
            assert all(isinstance(effect, Close) for effect in effects)


def test_an_abort_says_why_and_takes_the_announcement_back() -> None:
    for job, event in CASES:
        row = row_of(job, event)
        if row is not None and row.to is Phase.ABORTED and job.phase is not Phase.ABORTED:
            after, effects = step(job, event)
            assert after.reason
            assert Withdraw() in effects


def test_a_job_of_two_rounds_runs_to_a_release() -> None:
    job, effects = step(FRESH, Started())
    assert effects == [Announce(), StartTimer(0)]
    job, effects = step(job, Joined("a"))
    assert effects == []
    job, effects = step(job, Joined("b"))
    assert effects == [StartTimer(1), Invite("a"), Invite("b")]
    for number in (1, 2):
        job, effects = step(job, Offered("a", number, ONE))
        assert effects == [Fetch("a", ONE)]
        job, effects = step(job, Received("a", ONE.digest))
        assert effects == [Confirm("a", ONE.digest)]
        job, _ = step(job, Offered("b", number, OTHER))
        job, effects = step(job, Received("b", OTHER.digest))
        assert effects == [Confirm("b", OTHER.digest), Average()]
        job, effects = step(job, Averaged(digest(b"new"), 120))
        assert effects[:2] == [Close("a", number), Close("b", number)]
    assert effects[2:] == [Withdraw(), Rebuild()]
    assert job.weights == digest(b"new")
    job, effects = step(job, Passed())
    assert effects == [Publish()]
    job, _ = step(job, Published())
    assert job.phase is Phase.PUBLISHED


def test_an_offer_that_is_repeated_is_confirmed_again_and_another_one_is_not_taken() -> None:
    job = ROUND.model_copy(update={"phase": Phase.COLLECTING, "received": {"a": ONE}})
    assert step(job, Offered("a", 1, ONE)) == (job, [Confirm("a", ONE.digest)])
    assert step(job, Offered("a", 1, OTHER)) == (job, [Close("a", 1)])


def test_a_lost_update_may_be_offered_again() -> None:
    job = ROUND.model_copy(update={"phase": Phase.COLLECTING, "offered": {"a": ONE}})
    job, _ = step(job, Lost("a", ONE.digest))
    _, effects = step(job, Offered("a", 1, ONE))
    assert effects == [Fetch("a", ONE)]


def test_a_restart_asks_everyone_again_who_has_not_delivered() -> None:
    job = ROUND.model_copy(update={"phase": Phase.COLLECTING, "received": {"a": ONE}, "offered": {"b": OTHER}})
    after, effects = step(job, Resumed())
    assert effects == [Announce(), StartTimer(1), Invite("b")]
    assert after.received == {"a": ONE}


def test_a_deadline_closes_with_a_quorum_and_aborts_without() -> None:
    job = ROUND.model_copy(update={"phase": Phase.COLLECTING, "received": {"a": ONE}})
    after, effects = step(job, Deadline(1))
    assert (after.phase, effects) == (Phase.AVERAGING, [Average()])
    after, _ = step(job.model_copy(update={"quorum": 2}), Deadline(1))
    assert after.phase is Phase.ABORTED
    assert after.reason == "round 1: 1 updates of 2 devices, the quorum is 2"


def test_a_job_survives_being_written_down() -> None:
    for data in DATA:
        assert Job.model_validate_json(data.model_dump_json()) == data


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(EVENTS), max_size=40))
def test_no_order_of_events_loses_or_doubles_an_update(events: list[Event]) -> None:
    job = FRESH
    for event in [Started(), *events]:
        before = job
        try:
            job, effects = step(job, event)
        except UsageError:
            continue
        assert not job.received.keys() & job.declined.keys()
        if Average() in effects:
            assert len(job.received) >= job.quorum
        if job.round == before.round:
            assert before.received.items() <= job.received.items()
