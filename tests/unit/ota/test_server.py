"""The server's one event loop, on a broker inside the process."""

import asyncio
from pathlib import Path

import pytest

from edgert.errors import StoreError
from edgert.wire import topics
from edgert.wire.transports.base import Broker
from edgert.wire.transports.loopback import LoopbackBroker, LoopbackTransport
from ota.server import serve
from tests.support.fleet import enrolled_row, fleet
from tests.support.loop import run


def transport(broker: LoopbackBroker, name: str) -> LoopbackTransport:
    return LoopbackTransport(Broker("loop", 1, name), broker)


def test_it_stops_in_order_when_asked(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    enrolled_row(made, "box1")

    async def go() -> None:
        broker, stop = LoopbackBroker(), asyncio.Event()
        work = asyncio.create_task(serve(made, transport(broker, "ota-server"), stop))
        box = transport(broker, "box1")
        await box.connect()
        assert (await anext(await box.subscribe(topics.device("box1", "desired")))).payload
        stop.set()
        await work
        await box.close()

    run(go())


def test_a_device_that_enrols_while_it_runs_gets_its_assignment(tmp_path: Path) -> None:
    made = fleet(tmp_path)

    async def go() -> None:
        broker, stop = LoopbackBroker(), asyncio.Event()
        work = asyncio.create_task(serve(made, transport(broker, "ota-server"), stop))
        box = transport(broker, "box1")
        await box.connect()
        heard = await box.subscribe(topics.device("box1", "desired"))
        await asyncio.to_thread(enrolled_row, made, "box1")
        assert (await anext(heard)).payload
        stop.set()
        await work

    run(go())


def test_a_failure_for_good_is_one_error_not_a_tree_of_tasks(tmp_path: Path) -> None:
    made = fleet(tmp_path, timestamp_days=4e-6)
    enrolled_row(made, "box1")

    async def go() -> None:
        broker = LoopbackBroker()
        work = asyncio.create_task(serve(made, transport(broker, "ota-server"), asyncio.Event()))
        box = transport(broker, "box1")
        await box.connect()
        await anext(await box.subscribe(topics.device("box1", "desired")))
        (made.home.metadata / "1.targets.json").write_bytes(b"damaged")
        await work

    with pytest.raises(StoreError, match=r"1\.targets\.json"):
        run(go())
