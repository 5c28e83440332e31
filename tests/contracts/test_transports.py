"""Every transport keeps the contract of `edgert.wire.transports.base`; MQTT over a real broker with TLS."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import pytest

from edgert import plugins
from edgert.errors import LinkError, UsageError
from edgert.wire.transports.base import Broker, Delivery, Subscription, Transport, Will
from edgert.wire.transports.loopback import LoopbackBroker, LoopbackTransport
from edgert.wire.transports.mqtt import MqttTransport
from tests.support.broker import Mosquitto
from tests.support.certificates import Certificates
from tests.support.loop import run
from tests.support.relay import Relay

_ACL = """\
pattern readwrite open/#
user writer
topic readwrite closed/#
"""


class _Bench(Protocol):
    def transport(self, name: str) -> Transport: ...
    def cut(self, name: str) -> None: ...
    def stop(self) -> None: ...
    def start(self) -> None: ...
    def close(self) -> None: ...


class _LoopbackBench:
    def __init__(self, folder: Path) -> None:
        self._broker = LoopbackBroker(acl=lambda who, _, topic: topic.startswith("open/") or who == "writer")

    def transport(self, name: str) -> Transport:
        return LoopbackTransport(Broker("loopback", 1, name), self._broker)

    def cut(self, name: str) -> None:
        self._broker.drop(name)

    def stop(self) -> None:
        self._broker.stop()

    def start(self) -> None:
        self._broker.start()

    def close(self) -> None:
        pass


class _MqttBench:
    def __init__(self, folder: Path) -> None:
        self._certificates = Certificates.make(folder)
        self._broker = Mosquitto(folder, self._certificates.config(_ACL))
        self._broker.start()
        self._relays: dict[str, Relay] = {}

    def transport(self, name: str) -> Transport:
        relay = self._relays[name] = Relay(self._broker.port).__enter__()
        return MqttTransport(self._certificates.broker(name, relay.port))

    def cut(self, name: str) -> None:
        self._relays[name].cut()

    def stop(self) -> None:
        self._broker.stop()

    def start(self) -> None:
        self._broker.start()

    def close(self) -> None:
        for relay in self._relays.values():
            relay.__exit__(None, None, None)
        self._broker.stop()


_BENCHES = {"loopback": _LoopbackBench, "mqtt": _MqttBench}


@pytest.fixture(params=plugins.names("edgert.wire.transports"))
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[_Bench]:
    made = _BENCHES[request.param](tmp_path)
    yield made
    made.close()


async def _connected(bench: _Bench, name: str, will: Will | None = None) -> Transport:
    transport = bench.transport(name)
    await transport.connect(will)
    return transport


async def _next(subscription: Subscription) -> Delivery:
    async with asyncio.timeout(10):
        return await anext(subscription)


async def _until(subscription: Subscription, payload: bytes) -> list[bytes]:
    seen = []
    while not seen or seen[-1] != payload:
        seen.append((await _next(subscription)).payload)
    return seen


def test_messages_of_both_qualities_arrive_once_at_whoever_subscribed(bench: _Bench) -> None:
    async def main() -> None:
        one, two = await _connected(bench, "one"), await _connected(bench, "two")
        deep, flat = await two.subscribe("open/#"), await two.subscribe("open/+")
        again, mine = await two.subscribe("open/+"), await one.subscribe("open/b/c")
        await one.publish("open/a", b"first")
        await one.publish("open/b/c", b"second", qos=0)
        await one.publish("open/a", b"last")
        assert await _until(deep, b"last") == [b"first", b"second", b"last"]
        assert await _until(flat, b"last") == [b"first", b"last"]
        assert await _until(again, b"last") == [b"first", b"last"]
        assert await _next(mine) == Delivery("open/b/c", b"second", False)
        assert one.sent_bytes == len(b"firstsecondlast")
        assert two.received_bytes >= one.sent_bytes
        await one.close()
        await two.close()

    run(main())


def test_retained_messages_reach_later_subscribers_and_nobody_twice(bench: _Bench) -> None:
    async def main() -> None:
        one = await _connected(bench, "one")
        await one.publish("open/a", b"old", retain=True)
        await one.publish("open/a", b"kept", retain=True)
        early = await one.subscribe("open/+")
        assert await _next(early) == Delivery("open/a", b"kept", True)
        late = await one.subscribe("open/+")
        assert await _next(late) == Delivery("open/a", b"kept", True)
        await one.publish("open/a", b"", retain=True)
        assert await _until(early, b"") == [b""]
        afterwards = await one.subscribe("open/a")
        await one.publish("open/a", b"live")
        assert await _next(afterwards) == Delivery("open/a", b"live", False)
        await one.close()

    run(main())


def test_a_closed_iterator_gets_nothing_more_and_others_go_on(bench: _Bench) -> None:
    async def main() -> None:
        one = await _connected(bench, "one")
        first, second = await one.subscribe("open/a"), await one.subscribe("open/a")
        await first.aclose()
        await first.aclose()
        await one.publish("open/a", b"x")
        assert (await _next(second)).payload == b"x"
        with pytest.raises(StopAsyncIteration):
            await _next(first)
        await one.close()
        assert [delivery async for delivery in second] == []

    run(main())


def test_a_large_payload_arrives_whole(bench: _Bench) -> None:
    async def main() -> None:
        one = await _connected(bench, "one")
        inbox = await one.subscribe("open/a")
        payload = bytes(range(256)) * 20_000
        await one.publish("open/a", payload)
        assert (await _next(inbox)).payload == payload
        await one.close()

    run(main())


def test_the_will_is_published_when_the_connection_breaks_and_not_after_a_good_bye(bench: _Bench) -> None:
    async def main() -> None:
        watcher = await _connected(bench, "watcher")
        inbox = await watcher.subscribe("open/+")
        orderly = await _connected(bench, "orderly", Will("open/orderly", b"gone"))
        await orderly.close()
        broken = await _connected(bench, "broken", Will("open/broken", b"gone"))
        bench.cut("broken")
        assert (await _next(inbox)).topic == "open/broken"
        await broken.wait_generation(1)
        late = await watcher.subscribe("open/broken")
        assert await _next(late) == Delivery("open/broken", b"gone", True)
        await broken.close()
        await watcher.close()

    run(main())


def test_after_a_restart_of_the_broker_everything_goes_on(bench: _Bench) -> None:
    async def main() -> None:
        one, two = await _connected(bench, "one"), await _connected(bench, "two")
        inbox, other = await two.subscribe("open/+"), await two.subscribe("open/deep/#")
        bench.stop()
        waiting = asyncio.create_task(one.publish("open/a", b"sent meanwhile"))
        await one.publish("open/a", b"lost", qos=0)
        added = asyncio.create_task(two.subscribe("open/new"))
        await asyncio.sleep(0)
        assert not waiting.done()
        bench.start()
        assert await one.wait_generation(1) >= 2
        assert await two.wait_generation(1) >= 2
        await waiting
        fresh = await added
        await one.publish("open/deep/er", b"deep")
        await one.publish("open/new", b"end")
        assert await _until(other, b"deep") == [b"deep"]
        assert await _until(fresh, b"end") == [b"end"]
        assert set(await _until(inbox, b"end")) <= {b"sent meanwhile", b"end"}
        await one.close()
        await two.close()

    run(main())


def test_what_the_acl_forbids_is_not_delivered(bench: _Bench) -> None:
    async def main() -> None:
        writer, reader = await _connected(bench, "writer"), await _connected(bench, "reader")
        forbidden, allowed = await reader.subscribe("closed/#"), await reader.subscribe("open/#")
        watched = await writer.subscribe("closed/#")
        await writer.publish("closed/a", b"secret")
        with suppress(LinkError):  # a broker may say so; whether it was delivered is what counts
            await reader.publish("closed/a", b"intruder")
        await writer.publish("closed/a", b"end")
        await writer.publish("open/a", b"end")
        assert await _until(watched, b"end") == [b"secret", b"end"]
        assert await _until(allowed, b"end") == [b"end"]
        await reader.close()
        assert [delivery async for delivery in forbidden] == []
        await writer.close()

    run(main())


def test_a_second_client_of_the_same_name_throws_the_first_off_without_a_fight(bench: _Bench) -> None:
    async def main() -> None:
        first = await _connected(bench, "same")
        second = await _connected(bench, "same")
        inbox = await second.subscribe("open/a")
        for number in range(50):
            await second.publish("open/a", b"%d" % number)
            assert (await _next(inbox)).payload == b"%d" % number
        assert (first.generation, second.generation) == (1, 1)
        await first.close()
        await second.close()

    run(main())


def test_a_closed_transport_says_so(bench: _Bench) -> None:
    async def main() -> None:
        one = bench.transport("one")
        with pytest.raises(LinkError, match="not connected"):
            await one.publish("open/a", b"x")
        await one.connect()
        waiter = asyncio.create_task(one.wait_generation(1))
        await asyncio.sleep(0)
        await one.close()
        await one.close()
        with pytest.raises(LinkError, match="closed"):
            await waiter
        with pytest.raises(LinkError, match="closed"):
            await one.publish("open/a", b"x")
        with pytest.raises(LinkError, match="closed"):
            await one.subscribe("open/a")
        with pytest.raises(UsageError):
            await one.connect()

    run(main())


def test_a_broker_that_is_down_is_a_clear_error(bench: _Bench) -> None:
    async def main() -> None:
        bench.stop()
        one = bench.transport("one")
        with pytest.raises(LinkError) as caught:
            await one.connect(timeout_s=5)
        assert caught.value.hint
        await one.close()
        bench.start()

    run(main())


@pytest.mark.parametrize("topic", ["", "open/+", "open/#", "open/\0", "x" * 70_000])
def test_an_impossible_topic_is_refused(bench: _Bench, topic: str) -> None:
    async def main() -> None:
        one = await _connected(bench, "one")
        with pytest.raises(UsageError):
            await one.publish(topic, b"x")
        await one.close()

    run(main())
