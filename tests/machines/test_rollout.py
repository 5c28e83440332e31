"""The rollout machine, from its table: every row is taken, everything else is refused."""

import itertools

import pytest

from edgert.errors import UsageError
from ota.rollouts.machine import (
    TRANSITIONS,
    AskStrategy,
    Assign,
    Chosen,
    DeviceStatus,
    Event,
    Failed,
    Installed,
    Revert,
    Rollout,
    Row,
    Start,
    Status,
    Superseded,
    step,
)

W, A, D, F = DeviceStatus.WAITING, DeviceStatus.ASSIGNED, DeviceStatus.DONE, DeviceStatus.FAILED
DEVICES = (
    {"a": W, "b": W},
    {"a": A, "b": W},
    {"a": A, "b": A},
    {"a": A, "b": D},
    {"a": D, "b": D},
    {"a": F, "b": A},
    {"a": F, "b": W},
)
EVENTS: tuple[Event, ...] = (
    Start(),
    Chosen(frozenset()),
    Chosen(frozenset({"a"})),
    Chosen(frozenset({"b"})),
    Chosen(frozenset({"a", "b"})),
    Chosen(frozenset({"stranger"})),
    Installed("a"),
    Installed("b"),
    Installed("stranger"),
    Failed("a", "no room"),
    Failed("b", "no room"),
    Failed("stranger", "no room"),
    Superseded("version 3 comes"),
)
CASES = [(Rollout(status, devices), event) for status in Status for devices in DEVICES for event in EVENTS]


def row_of(rollout: Rollout, event: Event) -> Row | None:
    fitting = (
        row
        for row in TRANSITIONS
        if row.state is rollout.status and row.event is type(event) and row.guard(rollout, event)
    )
    return next(fitting, None)


def test_every_row_of_the_table_is_taken_by_some_case() -> None:
    taken = {TRANSITIONS.index(row) for row in itertools.starmap(row_of, CASES) if row is not None}
    assert taken == set(range(len(TRANSITIONS)))


def test_every_row_leads_where_it_says_and_everything_else_is_an_error() -> None:
    for rollout, event in CASES:
        row = row_of(rollout, event)
        if row is None:
            with pytest.raises(UsageError):
                step(rollout, event)
            continue
        after, effects = step(rollout, event)
        assert after.status is row.to
        assert after.devices.keys() == rollout.devices.keys()
        assert {effect.device for effect in effects if isinstance(effect, Assign)} == {
            name for name in after.devices if after.devices[name] is A and rollout.devices[name] is not A
        }
        assert {effect.device for effect in effects if isinstance(effect, Revert)} == {
            name for name in after.devices if after.devices[name] is F and rollout.devices[name] is not F
        }


def test_no_device_is_assigned_after_a_halt() -> None:
    for rollout, event in CASES:
        if rollout.status is Status.HALTED and row_of(rollout, event) is not None:
            _, effects = step(rollout, event)
            assert not any(isinstance(effect, Assign | AskStrategy) for effect in effects)


def test_a_rollout_runs_from_start_to_done_in_waves() -> None:
    rollout = Rollout(devices={"a": W, "b": W})
    rollout, effects = step(rollout, Start())
    assert effects == [AskStrategy()]
    rollout, effects = step(rollout, Chosen(frozenset({"a"})))
    assert effects == [Assign("a")]
    rollout, effects = step(rollout, Installed("a"))
    assert effects == [AskStrategy()]
    rollout, effects = step(rollout, Chosen(frozenset({"b"})))
    rollout, effects = step(rollout, Installed("b"))
    rollout, effects = step(rollout, Chosen(frozenset()))
    assert rollout.status is Status.DONE
    assert effects == []


def test_the_first_failure_is_the_reason_of_the_halt() -> None:
    rollout = Rollout(Status.RUNNING, {"a": A, "b": A})
    rollout, _ = step(rollout, Failed("a", "too slow"))
    rollout, effects = step(rollout, Failed("b", "no room"))
    assert rollout.reason == "a: too slow"
    assert effects == [Revert("b")]
