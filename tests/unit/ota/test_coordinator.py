"""Federated jobs over a broker inside the process, with participants made of messages and a conversion that is told
what to measure."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert.clock import SystemClock
from edgert.envelope import JOB_TYPE, verify
from edgert.errors import CheckError, UsageError
from edgert.federated.job import Phase
from edgert.federated.plan import Plan
from edgert.federated.update import Update, unpack_weights
from edgert.samples import load_arrays
from edgert.store import Store
from edgert.values import Weights, digest
from edgert.wire import topics
from edgert.wire.chunks import StoreSource, answer
from edgert.wire.fleet import FLEET_KEYS, FleetKeys
from edgert.wire.link import Link
from edgert.wire.messages.blob import Done, Get
from edgert.wire.messages.federated import Invite, Join, Offer, decode_down
from edgert.wire.transports.base import Broker
from edgert.wire.transports.loopback import LoopbackBroker, LoopbackTransport
from ota.coordinator import Coordinator
from ota.fleet import Fleet
from ota.operations.actor import local_operator
from ota.operations.enrol import devices_list
from ota.operations.learn import federate_start, federate_status, federate_stop, local_training
from ota.operations.release import publish
from ota.operations.spread import rollout_start
from ota.rebuild import Rebuilt
from ota.store import jobs
from tests.support.fleet import WEIGHTS, bundle_file, enrolled_row, fleet
from tests.support.loop import run
from tests.support.stand import until

ACTOR = local_operator()
BOXES = ("box1", "box2", "box3")
Part = tuple[Weights | bytes, int] | tuple[Weights | bytes, int, int]


@pytest.fixture
def made(tmp_path: Path) -> Fleet:
    made = fleet(tmp_path)
    for name in BOXES:
        enrolled_row(made, name)
    bundle_file(tmp_path / "m.edgert")
    publish(made, ACTOR, [tmp_path / "m.edgert"])
    rollout_start(made, ACTOR, "tiny")
    return made


@dataclass
class Converter:
    """Writes another bundle and says what it measured."""

    accuracy: float = 0.95
    weights: list[Weights] = field(default_factory=list)

    async def __call__(self, source: Path, weights: Path, bundle: Path, *, timeout_s: float) -> Rebuilt:
        self.weights.append(load_arrays(weights))
        bundle_file(bundle, content=b"rebuilt")
        return Rebuilt(bundle, self.accuracy)


class Participant:
    """Answers invitations with an update that moves every weight by `delta`, or with those bytes.

    Args:
        examples: it joins with so many, and offers as many, or `offered`.
    """

    def __init__(
        self, name: str, link: Link, folder: Path, delta: Weights | bytes, examples: int, offered: int | None = None
    ) -> None:
        self.name, self.link = name, link
        self.store = Store(folder / name)
        self.packed = delta if isinstance(delta, bytes) else Update(delta, 1).pack()
        self.examples, self.offered = examples, offered or examples
        self.confirmed: list[str] = []
        self.rounds: list[int] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            jobs = await self.link.listen(topics.JOBS)
            inbox = await self.link.listen(topics.device(self.name, "fl/in"))
            asks = await self.link.listen(topics.device(self.name, "ack"))
            group.create_task(self._asks(asks))
            group.create_task(self._inbox(inbox))
            async for delivery in jobs:
                if delivery.payload:
                    await self._say(Join(job=delivery.topic.rsplit("/", 1)[1], examples=self.examples))

    async def _inbox(self, inbox: Any) -> None:
        async for delivery in inbox:
            message = decode_down(delivery.payload)
            if isinstance(message, Invite):
                self.rounds.append(message.round)
                offer = Offer(
                    job=message.job, round=message.round, update=self.store.add(self.packed),
                    update_bytes=len(self.packed), examples=self.offered, loss=0.1,
                )  # fmt: skip
                await self._say(offer)
                await self._say(offer)

    async def _asks(self, asks: Any) -> None:
        async for delivery in asks:
            if b"transfer" in delivery.payload:
                frame = answer(Get.decode(delivery.payload), StoreSource(self.store))
                await self.link.send_raw(topics.device(self.name, "put"), frame.encode(), qos=0)
            else:
                self.confirmed.append(Done.decode(delivery.payload).name)

    async def _say(self, message: Join | Offer) -> None:
        await self.link.send(topics.device(self.name, "fl/out"), message)


class Hall:
    """The server's half of a job, and its participants, on one loopback broker."""

    def __init__(self, made: Fleet, folder: Path, converter: Converter) -> None:
        self.made, self.folder, self.converter = made, folder, converter
        self.broker = LoopbackBroker()

    async def link(self, name: str) -> Link:
        transport = LoopbackTransport(Broker("loop", 1, name), self.broker)
        await transport.connect()
        return Link(transport, SystemClock())

    @asynccontextmanager
    async def coordinator(self) -> AsyncIterator[Coordinator]:
        link = await self.link("ota-server")
        made = Coordinator(self.made, link, self.converter)
        tasks = [asyncio.create_task(made.run())]
        for leaf, take in (("put", made.deliver), ("fl/out", made.hear)):
            tasks.append(asyncio.create_task(_each(await link.listen(topics.every_device(leaf)), take)))
        await made.reconcile(everything=True)
        try:
            yield made
        finally:
            await _end(tasks)
            await link.transport.close()

    @asynccontextmanager
    async def participants(self, deltas: Mapping[str, "Part"]) -> AsyncIterator[list[Participant]]:
        found = [Participant(name, await self.link(name), self.folder, *part) for name, part in deltas.items()]
        tasks = [asyncio.create_task(part.run()) for part in found]
        try:
            yield found
        finally:
            await _end(tasks)

    async def phase(self, *wanted: str) -> dict[str, Any]:
        return await self.status(f"the phase {' or '.join(wanted)}", lambda row: row["phase"] in wanted)

    async def status(self, what: str, arrived: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        def look() -> dict[str, Any]:
            row = federate_status(self.made, ACTOR)[-1]
            return row if arrived(row) else {}

        return dict(await asyncio.to_thread(until, what, look, 20))


async def _each(subscription: Any, take: Any) -> None:
    async for delivery in subscription:
        take(delivery)


async def _end(tasks: list["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def moved_by(value: float) -> Weights:
    return {name: np.full_like(array, value) for name, array in WEIGHTS.items()}


def start(made: Fleet, **options: Any) -> dict[str, Any]:
    return federate_start(made, ACTOR, "tiny", **{"participants": 3, "deadline_s": 15.0, **options})


def test_two_rounds_become_a_release_of_the_weighted_mean(made: Fleet, tmp_path: Path) -> None:
    hall = Hall(made, tmp_path, Converter())
    start(made, rounds=2)

    async def go() -> list[Participant]:
        deltas = {"box1": (moved_by(1.0), 1), "box2": (moved_by(2.0), 1), "box3": (moved_by(4.0), 2)}
        async with hall.coordinator(), hall.participants(deltas) as parts:
            row = await hall.phase("PUBLISHED", "ABORTED")
            assert row["phase"] == "PUBLISHED", row["reason"]
            assert (row["version"], row["accuracy"]) == (2, 0.95)
            return parts

    parts = run(go())
    mean = (1 + 2 + 2 * 4) / 4
    for name, array in hall.converter.weights[-1].items():
        np.testing.assert_allclose(array, WEIGHTS[name] + 2 * mean, rtol=1e-6)
    assert all(set(part.rounds) == {1, 2} for part in parts)
    assert all(part.confirmed for part in parts)
    assert {row["device"]: row["desired"] for row in devices_list(made, ACTOR)} == {box: {"tiny": 2} for box in BOXES}
    assert list(made.home.updates.iterdir()) == []
    assert list(made.home.work.iterdir()) == []


def test_a_result_that_is_worse_is_never_released(made: Fleet, tmp_path: Path) -> None:
    hall = Hall(made, tmp_path, Converter(accuracy=0.89))
    start(made, participants=1)

    async def go() -> dict[str, Any]:
        async with hall.coordinator(), hall.participants({"box1": (moved_by(1.0), 5)}):
            return await hall.phase("PUBLISHED", "ABORTED")

    row = run(go())
    assert row["phase"] == "ABORTED"
    assert "0.8900" in row["reason"]
    assert {str(row["desired"]) for row in devices_list(made, ACTOR)} == {"{'tiny': 1}"}


def test_updates_that_do_not_fit_are_refused_and_the_quorum_goes_on(made: Fleet, tmp_path: Path) -> None:
    hall = Hall(made, tmp_path, Converter())
    start(made, quorum=1)
    wrong = {"w": np.zeros((9, 9), np.float32), "b": WEIGHTS["b"]}
    poison = {name: np.full_like(array, np.nan) for name, array in WEIGHTS.items()}

    async def go() -> dict[str, Any]:
        deltas = {"box1": (moved_by(1.0), 1), "box2": (wrong, 1), "box3": (poison, 1)}
        async with hall.coordinator(), hall.participants(deltas):
            return await hall.phase("PUBLISHED", "ABORTED")

    row = run(go())
    assert row["phase"] == "PUBLISHED"
    assert list(row["received"]) == ["box1"]
    assert "shape" in row["declined"]["box2"]
    assert "finite" in row["declined"]["box3"]
    np.testing.assert_allclose(hall.converter.weights[-1]["b"], WEIGHTS["b"] + 1)


def test_a_claim_of_too_many_bytes_or_examples_is_not_even_fetched(made: Fleet, tmp_path: Path) -> None:
    hall = Hall(made, tmp_path, Converter())
    start(made, participants=1)

    async def go() -> dict[str, Any]:
        async with hall.coordinator(), hall.participants({"box1": (moved_by(1.0), 10**12)}):
            return await hall.phase("PUBLISHED", "ABORTED")

    assert "too many" in run(go())["reason"]


def test_too_few_participants_end_the_job_at_the_deadline(made: Fleet, tmp_path: Path) -> None:
    hall = Hall(made, tmp_path, Converter())
    start(made, deadline_s=0.3)

    async def go() -> dict[str, Any]:
        async with hall.coordinator(), hall.participants({"box1": (moved_by(1.0), 1)}):
            return await hall.phase("PUBLISHED", "ABORTED")

    assert run(go())["reason"] == "joining: 1 devices, the quorum is 3"


def test_an_operator_stops_a_job_that_waits_and_none_that_is_over(made: Fleet, tmp_path: Path) -> None:
    hall = Hall(made, tmp_path, Converter())
    start(made)

    async def go() -> dict[str, Any]:
        async with hall.coordinator() as coordinator, hall.participants({"box1": (moved_by(1.0), 1)}):
            await hall.status("a participant", lambda row: bool(row["joined"]))
            await asyncio.to_thread(federate_stop, made, ACTOR, "tiny-1")
            await coordinator.reconcile(everything=False)
            return await hall.phase("PUBLISHED", "ABORTED")

    row = run(go())
    assert (row["phase"], row["reason"]) == ("ABORTED", f"stopped by {ACTOR.name}")
    with pytest.raises(UsageError, match="it is over"):
        federate_stop(made, ACTOR, "tiny-1")
    assert start(made)["job"] == "tiny-2"


def test_a_job_whose_release_is_being_signed_is_not_stopped(made: Fleet) -> None:
    start(made)
    with made.database.write() as session:
        jobs.get(session, "tiny-1").phase = Phase.GATED.value
    with pytest.raises(UsageError, match="publishing its release"):
        federate_stop(made, ACTOR, "tiny-1")


def test_a_job_stopped_while_no_server_ran_ends_when_one_does(made: Fleet, tmp_path: Path) -> None:
    hall = Hall(made, tmp_path, Converter())
    start(made)
    federate_stop(made, ACTOR, "tiny-1")

    async def go() -> dict[str, Any]:
        async with hall.coordinator():
            return await hall.phase("PUBLISHED", "ABORTED")

    assert run(go())["phase"] == "ABORTED"


def test_a_restarted_server_goes_on_with_what_it_has(made: Fleet, tmp_path: Path) -> None:
    hall = Hall(made, tmp_path, Converter())
    start(made, participants=2)

    async def first() -> None:
        async with hall.coordinator(), hall.participants({"box1": (moved_by(1.0), 1)}):
            silent = await hall.link("box2")
            await hall.phase("ANNOUNCED")
            await silent.send(topics.device("box2", "fl/out"), Join(job="tiny-1", examples=1))
            await hall.status("an update", lambda row: bool(row["received"]))

    async def second() -> dict[str, Any]:
        async with hall.coordinator(), hall.participants({"box2": (moved_by(3.0), 1)}):
            return await hall.phase("PUBLISHED", "ABORTED")

    run(first())
    hall.broker = LoopbackBroker()
    row = run(second())
    assert row["phase"] == "PUBLISHED", row["reason"]
    np.testing.assert_allclose(hall.converter.weights[-1]["b"], WEIGHTS["b"] + 2)


def test_the_announcement_is_signed_by_the_federation_key_and_taken_back(made: Fleet, tmp_path: Path) -> None:
    hall = Hall(made, tmp_path, Converter())
    start(made, participants=1)
    named = FleetKeys.decode(made.store.read(made.repository.targets()[FLEET_KEYS].digest)).for_federation()

    async def go() -> list[bytes]:
        heard = await (await hall.link("listener")).listen(topics.JOBS)
        async with hall.coordinator(), hall.participants({"box1": (moved_by(1.0), 5)}):
            await hall.phase("PUBLISHED")
        await heard.aclose()
        return [delivery.payload async for delivery in heard]

    announced, withdrawn = run(go())
    plan = Plan.decode(verify(announced, JOB_TYPE, named))
    assert (plan.job, plan.model, plan.participants) == ("tiny-1", "tiny", 1)
    assert withdrawn == b""


def test_a_job_that_cannot_end_well_is_refused_at_the_start(made: Fleet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="4 participants are wanted, 3 devices"):
        start(made, participants=4)
    with pytest.raises(UsageError, match="quorum of 3"):
        start(made, participants=2, quorum=3)
    with pytest.raises(UsageError, match="learning_rate"):
        local_training(learning_rate=-1.0)
    with pytest.raises(UsageError, match="no plug-in"):
        start(made, aggregator="guess")
    start(made)
    with pytest.raises(UsageError, match="under way"):
        start(made)


def test_a_release_without_source_is_not_trained(made: Fleet, tmp_path: Path) -> None:
    bundle_file(tmp_path / "n.edgert", content=b"other")
    publish(made, ACTOR, [tmp_path / "n.edgert"], without_source=True)
    with pytest.raises(UsageError, match="without its source"):
        start(made)


def test_what_a_stranger_or_a_fool_says_changes_nothing(made: Fleet, tmp_path: Path) -> None:
    hall = Hall(made, tmp_path, Converter())
    start(made, participants=1)

    async def go() -> dict[str, Any]:
        async with hall.coordinator():
            link = await hall.link("box9")
            offer = Offer(job="tiny-1", round=1, update=digest(b"x"), update_bytes=5, examples=1, loss=0.0)
            await link.send(topics.device("box9", "fl/out"), offer)
            await link.send_raw(topics.device("box9", "fl/out"), b"rubbish")
            await link.send(topics.device("box9", "fl/out"), Join(job="no-such-job", examples=1))
            async with hall.participants({"box1": (moved_by(1.0), 5)}):
                return await hall.phase("PUBLISHED", "ABORTED")

    assert run(go())["joined"] == ["box1"]


def corrupt() -> bytes:
    """An ``.npz`` file whose compressed bytes are damaged."""
    content, packed = io.BytesIO(), io.BytesIO()
    np.save(content, np.zeros(1000, np.float32))
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", content.getvalue())
    data = bytearray(packed.getvalue())
    data[35:41] = b"\xff" * 6
    return bytes(data)


def bomb() -> bytes:
    """A small ``.npz`` file of the model's own names that unpacks to much."""
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, w=np.zeros(2_000_000, np.float32), b=np.zeros(2, np.float32))
    return packed.getvalue()


def test_a_corrupt_update_and_a_bomb_are_refused_and_the_others_go_on(made: Fleet, tmp_path: Path) -> None:
    hall = Hall(made, tmp_path, Converter())
    start(made, quorum=1)

    async def go() -> dict[str, Any]:
        parts: dict[str, Part] = {"box1": (moved_by(1.0), 1), "box2": (corrupt(), 1), "box3": (bomb(), 1)}
        async with hall.coordinator(), hall.participants(parts):
            return await hall.phase("PUBLISHED", "ABORTED")

    row = run(go())
    assert row["phase"] == "PUBLISHED", row["reason"]
    assert list(row["received"]) == ["box1"]
    assert "unpack to more" in row["declined"]["box3"]
    np.testing.assert_allclose(hall.converter.weights[-1]["b"], WEIGHTS["b"] + 1)


def test_devices_that_learned_the_same_do_not_get_in_each_others_way(made: Fleet, tmp_path: Path) -> None:
    hall = Hall(made, tmp_path, Converter())
    start(made)

    async def go() -> dict[str, Any]:
        async with hall.coordinator(), hall.participants({box: (moved_by(1.0), 1) for box in BOXES}):
            return await hall.phase("PUBLISHED", "ABORTED")

    row = run(go())
    assert (row["phase"], sorted(row["received"])) == ("PUBLISHED", list(BOXES))


def test_an_update_whose_place_on_disk_fails_is_lost_alone(made: Fleet, tmp_path: Path) -> None:
    hall = Hall(made, tmp_path, Converter())
    start(made, participants=2, quorum=1, deadline_s=1.0)
    (made.home.updates / "tiny-1").mkdir(parents=True)
    (made.home.updates / "tiny-1" / "box2").write_bytes(b"a file where a folder should be")

    async def go() -> dict[str, Any]:
        async with hall.coordinator(), hall.participants({box: (moved_by(1.0), 1) for box in BOXES[:2]}):
            return await hall.phase("PUBLISHED", "ABORTED")

    row = run(go())
    assert (row["phase"], list(row["received"])) == ("PUBLISHED", ["box1"])


def test_a_flood_of_wrong_offers_does_not_delay_the_deadline(made: Fleet, tmp_path: Path) -> None:
    hall = Hall(made, tmp_path, Converter())
    start(made, participants=2, quorum=1, deadline_s=1.0)

    async def flood(link: Link) -> None:
        wrong = Offer(job="tiny-1", round=7, update=digest(b"x"), update_bytes=5, examples=1, loss=0.0)
        while True:
            for _ in range(50):
                await link.send(topics.device("box2", "fl/out"), wrong)
            await asyncio.to_thread(link.clock.monotonic)

    async def go() -> dict[str, Any]:
        async with hall.coordinator(), hall.participants({"box1": (moved_by(1.0), 1)}):
            link = await hall.link("box2")
            await hall.phase("ANNOUNCED")
            await link.send(topics.device("box2", "fl/out"), Join(job="tiny-1", examples=1))
            await hall.status("an update", lambda row: bool(row["received"]))
            flooding = asyncio.create_task(flood(link))
            try:
                return await hall.phase("PUBLISHED", "ABORTED")
            finally:
                await _end([flooding])

    row = run(go())
    assert (row["phase"], list(row["received"])) == ("PUBLISHED", ["box1"])


def test_only_devices_that_are_to_serve_the_base_are_heard(made: Fleet, tmp_path: Path) -> None:
    hall = Hall(made, tmp_path, Converter())
    enrolled_row(made, "box4")
    start(made, participants=1)

    async def go() -> dict[str, Any]:
        async with hall.coordinator(), hall.participants({"box4": (moved_by(9.0), 1)}):
            await hall.phase("ANNOUNCED")
            async with hall.participants({"box1": (moved_by(1.0), 1)}):
                return await hall.phase("PUBLISHED", "ABORTED")

    assert run(go())["joined"] == ["box1"]


def test_nobody_counts_more_than_it_joined_with_or_ten_times_the_median(made: Fleet, tmp_path: Path) -> None:
    hall = Hall(made, tmp_path, Converter())
    start(made)

    async def go() -> dict[str, Any]:
        parts: dict[str, Part] = {
            "box1": (moved_by(0.0), 2),
            "box2": (moved_by(0.0), 2, 1_000),
            "box3": (moved_by(1.0), 1_000_000),
        }
        async with hall.coordinator(), hall.participants(parts):
            return await hall.phase("PUBLISHED", "ABORTED")

    row = run(go())
    assert row["received"]["box2"]["examples"] == 2
    np.testing.assert_allclose(hall.converter.weights[-1]["b"], WEIGHTS["b"] + 20 / 24, rtol=1e-6)


def test_a_job_the_server_fails_at_ends_alone(made: Fleet, tmp_path: Path) -> None:
    hall = Hall(made, tmp_path, Converter())
    start(made)
    (made.home.keys / "federation.hex").unlink()

    async def go() -> dict[str, Any]:
        async with hall.coordinator():
            return await hall.phase("PUBLISHED", "ABORTED")

    row = run(go())
    assert (row["phase"], row["reason"]) == ("ABORTED", "the server failed at this job: its log says how")
    assert start(made)["job"] == "tiny-2"


def test_the_mean_is_of_the_updates_alone() -> None:
    assert unpack_weights(Update(moved_by(2.0), 3).pack())["b"].tolist() == [2.0, 2.0]
    with pytest.raises(CheckError):
        Update(moved_by(np.inf), 1).check_against(WEIGHTS)
