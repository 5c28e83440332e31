"""The server's one event loop, on a broker inside the process."""

import asyncio
import base64
import json
from pathlib import Path

import pytest

from edgert.errors import StoreError
from edgert.identity import make_key, make_request
from edgert.wire import topics
from edgert.wire.messages.claim import ClaimReply, ClaimRequest
from edgert.wire.transports.base import Broker
from edgert.wire.transports.loopback import LoopbackBroker, LoopbackTransport
from ota.operations.actor import local_operator
from ota.operations.enrol import claims_new, devices_list
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


def foreign_curve() -> bytes:
    """A certificate request whose key names a curve that does not exist, PEM."""
    lines = make_request(make_key(), "x").decode().splitlines()
    data = base64.b64decode("".join(lines[1:-1]))
    bad = data.replace(bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030106"))
    assert bad != data
    return "\n".join([lines[0], base64.b64encode(bad).decode(), lines[-1], ""]).encode()


def test_it_outlives_what_devices_and_claims_send(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    enrolled_row(made, "evil")
    names = [str(claims_new(made, local_operator(), box, tmp_path / box)["claim"]) for box in ("box1", "box2")]
    event = {"format": 1, "model": "digits", "version": 1, "revision": 99, "phase": "DOWNLOAD", "done_bytes": 2**70}

    async def go() -> list[ClaimReply]:
        broker, stop = LoopbackBroker(), asyncio.Event()
        box = transport(broker, "boxes")
        await box.connect()
        heard = [await box.subscribe(topics.claim(name, "reply")) for name in names]
        for name, request in zip(names, (foreign_curve(), make_request(make_key(), "x")), strict=True):
            message = ClaimRequest(request=request.decode(), profile="x86-64")
            await box.publish(topics.claim(name, "request"), message.encode(), retain=True)
        await box.publish(topics.device("evil", "event"), json.dumps(event).encode(), retain=True)
        for leaf in ("get", "put", "fl/out", "state", "online"):
            await box.publish(topics.device("evil", leaf), b"\xff" * 100)
        work = asyncio.create_task(serve(made, transport(broker, "ota-server"), stop))
        replies = [ClaimReply.decode((await anext(sub)).payload) for sub in heard]
        stop.set()
        await work
        return replies

    refused, enrolled = run(go())
    assert (refused.certificate, bool(refused.error)) == ("", True)
    assert enrolled.device == "box2"
    assert {row["device"] for row in devices_list(made, local_operator())} == {"evil", "box2"}


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
