"""What comes up from devices: who waits, what is replaced, what the database holds afterwards."""

import asyncio

from edgert.wire import topics
from edgert.wire.transports.base import Delivery
from ota.ingest import Unwritten
from tests.support.loop import run


def said(device: str, leaf: str, text: str) -> Delivery:
    return Delivery(topics.device(device, leaf), text.encode(), False)


def taken(unwritten: Unwritten, limit: int = 100) -> list[tuple[str, bytes]]:
    batch = run(unwritten.take(limit))
    return [(f"{topics.device_of(row.topic)[0]} {topics.device_of(row.topic)[1]}", row.payload) for row in batch]


def test_only_the_newest_state_of_a_device_waits() -> None:
    unwritten = Unwritten()
    for number in range(1000):
        unwritten.put(said("flood", "state", str(number)))
    unwritten.put(said("calm", "state", "0"))
    unwritten.put(said("flood", "online", "1"))
    assert taken(unwritten) == [("flood state", b"999"), ("calm state", b"0"), ("flood online", b"1")]


def test_a_flood_of_events_waits_behind_everybody_else_and_has_an_end() -> None:
    unwritten = Unwritten(events=4)
    for number in range(1000):
        unwritten.put(said("flood", "event", str(number)))
    unwritten.put(said("calm", "event", "a"))
    unwritten.put(said("calm", "event", "b"))
    assert [payload for _, payload in taken(unwritten, 4)] == [b"996", b"a", b"997", b"b"]
    assert [payload for _, payload in taken(unwritten)] == [b"998", b"999"]


def test_who_takes_waits_until_somebody_says_something() -> None:
    async def go() -> list[Delivery]:
        unwritten = Unwritten()
        taking = asyncio.create_task(unwritten.take(10))
        unwritten.put(said("box1", "state", "here"))
        first = await taking
        again = asyncio.create_task(unwritten.take(10))
        unwritten.put(said("box1", "state", "still here"))
        return [*first, *(await again)]

    assert [row.payload for row in run(go())] == [b"here", b"still here"]
