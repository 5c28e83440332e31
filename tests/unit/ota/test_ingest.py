"""What comes up from devices: who waits, what is replaced, what the database holds afterwards."""

import asyncio
from pathlib import Path
from typing import Any, cast

from edgert.wire import topics
from edgert.wire.messages.device import Online
from edgert.wire.transports.base import Delivery
from ota.ingest import Ingest, Unwritten
from ota.operations.actor import local_operator
from ota.operations.enrol import devices_list
from tests.support.fleet import enrolled_row, fleet
from tests.support.loop import run
from tests.support.stand import until


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


class Unforeseen(bytes):
    """Bytes over which the reader of a message falls, in a way nobody thought of."""

    def __len__(self) -> int:
        raise OverflowError("too large")


def test_one_message_that_cannot_be_read_or_written_costs_nobody_elses(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    for name in ("box1", "box2"):
        enrolled_row(made, name)

    def arrived() -> bool:
        return [row["device"] for row in devices_list(made, local_operator()) if row["online"]] == ["box1", "box2"]

    async def listening(ingest: Ingest, deliveries: list[Delivery]) -> None:
        async def all_of_them() -> Any:
            for delivery in deliveries:
                yield delivery

        await ingest.listen(cast(Any, all_of_them()))

    async def go() -> bool:
        ingest = Ingest(made)
        here = Online(online=True).encode()
        said_things = [
            Delivery(topics.device("box1", "online"), here, False),
            Delivery(topics.device("evil", "state"), b"rubbish", False),
            Delivery(topics.device("box1", "event"), Unforeseen(b"{}"), False),
            Delivery(topics.device("box2", "online"), here, False),
        ]
        await listening(ingest, said_things)
        work = asyncio.create_task(ingest.run())
        try:
            return bool(await asyncio.to_thread(until, "both devices online", arrived, 10))
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    assert run(go())
