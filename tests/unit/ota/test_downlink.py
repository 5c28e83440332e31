"""What goes down to devices, over a broker inside the process."""

import asyncio
from datetime import timedelta
from pathlib import Path

from edgert.clock import ManualClock
from edgert.envelope import DESIRED_TYPE, verify
from edgert.wire import topics
from edgert.wire.fleet import FLEET_KEYS, FleetKeys
from edgert.wire.link import Link
from edgert.wire.messages.blob import Frame, Get, Status
from edgert.wire.transports.base import Broker, Delivery
from edgert.wire.transports.loopback import LoopbackBroker, LoopbackTransport
from edgert.wire.twin import Desired
from ota.downlink import Answers, Assignments
from ota.fleet import Fleet
from ota.store import devices
from ota.turns import Turns
from tests.support.fleet import enrolled_row, fleet
from tests.support.loop import run


async def linked(made: Fleet, broker: LoopbackBroker, name: str) -> Link:
    transport = LoopbackTransport(Broker("loop", 1, name), broker)
    await transport.connect()
    return Link(transport, made.clock)


def get(number: int, name: str = "sha256:" + "0" * 64) -> Get:
    return Get(transfer=number, name=name, offset=0, length=10)


def test_a_flood_of_one_device_does_not_delay_another() -> None:
    async def go() -> list[tuple[str, int]]:
        turns: Turns[Get] = Turns(limit=8)
        taken = [turns.put("flood", get(number)) for number in range(20)]
        assert taken.count(True) == 8
        assert turns.put("calm", get(100))
        order = [await turns.take() for _ in range(9)]
        assert turns.put("flood", get(21))
        return [(device, request.transfer) for device, request in order]

    order = run(go())
    assert order[:2] == [("flood", 0), ("calm", 100)]
    assert [number for device, number in order if device == "flood"] == list(range(8))


def test_only_known_devices_get_answers_and_only_on_their_own_topic(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    blob = made.store.add(b"content")

    async def go() -> tuple[list[Delivery], list[Delivery]]:
        broker = LoopbackBroker()
        answers = Answers(made, await linked(made, broker, "ota-server"))
        answers.known = frozenset({"box1"})
        listener = await linked(made, broker, "listener")
        mine = await listener.listen(topics.device("box1", "data"))
        others = await listener.listen(topics.device("stranger", "data"))
        work = asyncio.create_task(answers.run())
        answers.ask(Delivery(topics.device("stranger", "get"), get(1, blob).encode(), False))
        answers.ask(Delivery(topics.device("box1", "get"), b"rubbish", False))
        answers.ask(Delivery("edgert/v1/d/box1/x/get", get(1, blob).encode(), False))
        answers.ask(Delivery(topics.device("box1", "get"), get(2, blob).encode(), False))
        answers.ask(Delivery(topics.device("box1", "get"), get(3).encode(), False))
        got = [await anext(mine), await anext(mine)]
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await others.aclose()
        return got, [delivery async for delivery in others]

    got, others = run(go())
    frames = {frame.transfer: frame for frame in (Frame.decode(delivery.payload) for delivery in got)}
    assert (frames[2].status, frames[2].data) == (Status.OK, b"content")
    assert frames[3].status is Status.NOT_FOUND
    assert others == []


def test_who_asks_for_too_much_at_once_is_told_to_ask_later(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    blob = made.store.add(b"content")

    async def go() -> list[Frame]:
        broker = LoopbackBroker()
        answers = Answers(made, await linked(made, broker, "ota-server"))
        answers.known = frozenset({"box1"})
        mine = await (await linked(made, broker, "listener")).listen(topics.device("box1", "data"))
        for number in range(40):
            answers.ask(Delivery(topics.device("box1", "get"), get(number, blob).encode(), False))
        work = asyncio.create_task(answers.run())
        got = [Frame.decode((await anext(mine)).payload) for _ in range(40)]
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return got

    statuses = {frame.transfer: frame.status for frame in run(go())}
    assert [number for number, status in sorted(statuses.items()) if status is Status.BUSY] == list(range(32, 40))
    assert {statuses[number] for number in range(32)} == {Status.OK}


def test_an_assignment_is_signed_again_at_half_of_its_life_under_the_same_revision(tmp_path: Path) -> None:
    clock = ManualClock()
    made = fleet(tmp_path, clock)
    enrolled_row(made, "box1")
    named = FleetKeys.decode(made.store.read(made.repository.targets()[FLEET_KEYS].digest)).for_assignment()

    async def go() -> list[Desired]:
        broker = LoopbackBroker()
        assignments = Assignments(made, await linked(made, broker, "ota-server"))
        heard = await (await linked(made, broker, "box1")).listen(topics.device("box1", "desired"))
        for pause_s, everything in ((0, False), (86_400, False), (86_400, True), (2 * 86_400, False)):
            clock.advance(pause_s)
            await assignments.publish(everything=everything)
        await heard.aclose()
        return [Desired.decode(verify(delivery.payload, DESIRED_TYPE, named)) async for delivery in heard]

    first, repeated, renewed = run(go())
    assert repeated == first
    assert renewed.revision == first.revision == 1
    assert renewed.expires - first.expires == timedelta(days=4)


def test_what_could_not_be_sent_is_sent_later(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    enrolled_row(made, "box1")

    async def go() -> int:
        broker = LoopbackBroker()
        transport = LoopbackTransport(Broker("loop", 1, "ota-server"), broker, ack_timeout_s=0.01)
        await transport.connect()
        assignments = Assignments(made, Link(transport, made.clock))
        broker.stop()
        await assignments.publish(everything=False)
        broker.start()
        heard = await (await linked(made, broker, "box1")).listen(topics.device("box1", "desired"))
        await assignments.publish(everything=False)
        return len((await anext(heard)).payload)

    assert run(go())
    with made.database.read() as session:
        assert devices.get(session, "box1").envelope_revision == 1
