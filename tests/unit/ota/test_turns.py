"""Who waits behind whom."""

import logging

import pytest

from edgert.clock import ManualClock
from edgert.federated.job import Deadline, Event, Joined, Stopped
from ota.turns import Inbox
from tests.support.loop import run


async def taken(inbox: Inbox, count: int) -> list[tuple[str, Event]]:
    return [await inbox.take() for _ in range(count)]


def test_a_jobs_own_events_are_never_dropped_and_come_first() -> None:
    async def go() -> list[tuple[str, Event]]:
        inbox = Inbox("tiny-1", ManualClock())
        for _ in range(1000):
            inbox.put_of("flood", Joined("flood"))
        inbox.put_of("calm", Joined("calm"))
        for number in range(1000):
            inbox.put(Deadline(number))
        inbox.put(Stopped("enough"))
        return await taken(inbox, 1001 + 9)

    order = run(go())
    assert [event for _, event in order[:1001]] == [*(Deadline(number) for number in range(1000)), Stopped("enough")]
    assert [device for device, _ in order[1001:1003]] == ["flood", "calm"]
    assert [device for device, _ in order[1001:]].count("flood") == 8


def test_a_flood_is_one_line_in_the_log_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    inbox = Inbox("tiny-1", clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            inbox.put_of("flood", Joined("flood"))
        clock.advance(10)
        inbox.put_of("flood", Joined("flood"))
    assert [record.getMessage() for record in caplog.records] == [
        "job tiny-1: dropped 1 events, the last of flood",
        "job tiny-1: dropped 992 events, the last of flood",
    ]
