"""A box in a federated job: over the loopback broker, with the real training child."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from agents.enroll import Identity
from agents.offers import Offers
from agents.participant import Participant
from agents.uplink import Handler, Uplink
from edgert.bundle import Bundle
from edgert.clock import SystemClock
from edgert.envelope import JOB_TYPE, SigningKey, sign
from edgert.errors import TransferError
from edgert.federated.plan import LocalTraining, Plan
from edgert.federated.update import moved, unpack_weights
from edgert.samples import pack_arrays
from edgert.store import Slot, Store
from edgert.values import digest
from edgert.wire import topics
from edgert.wire.chunks import StoreSource, answer
from edgert.wire.fleet import FleetKeys
from edgert.wire.link import Fetcher, Link
from edgert.wire.messages.base import Message
from edgert.wire.messages.blob import Done, Get
from edgert.wire.messages.federated import Decline, Invite, Join, Offer, RoundOver, decode_up
from edgert.wire.transports.base import Broker, Delivery, Subscription
from edgert.wire.transports.loopback import LoopbackBroker, LoopbackTransport
from edgert.wire.twin import Reported
from tests.support.learner import MODEL, examples_folder, trainable_bundle
from tests.support.loop import run
from tests.support.signed import START, SignedFleet

DEVICE = "box1"


class Keys:
    def __init__(self, fleet: SignedFleet) -> None:
        self.fleet = fleet

    async def fleet_keys(self) -> FleetKeys:
        return self.fleet.fleet_keys()

    async def known_keys(self) -> FleetKeys:
        return self.fleet.fleet_keys()


class LearningBox:
    """A participant with its uplink; `activate` lets the bundle answer."""

    def __init__(self, folder: Path, stage: "Stage", *, examples: Path | None) -> None:
        self.store = Store(folder / "store")
        self.bundle = stage.bundle
        self.store.ingest(stage.bundle)
        identity = Identity(DEVICE, Broker("loopback", 1, DEVICE), b"")
        clock = SystemClock()
        self.uplink = Uplink(identity, lambda broker: LoopbackTransport(broker, stage.broker), clock)
        folders = {} if examples is None else {MODEL: examples}
        self.participant = Participant(
            DEVICE,
            Keys(stage.fleet),
            self.store,
            folder / "federated",
            folders,
            self.uplink,
            clock=clock,
            proven=lambda: START,
        )
        self._tasks: list[asyncio.Task[None]] = []

    def activate(self) -> None:
        self.store.switch(MODEL, self.store.stage(MODEL, Slot(digest=self.bundle.digest, version=1)))
        self.participant.activated(MODEL)

    def start(self) -> None:
        self._tasks = [
            asyncio.ensure_future(self.participant.run()),
            asyncio.ensure_future(self.uplink.run(self)),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def handlers(self) -> Mapping[str, Handler]:
        return {
            topics.device(DEVICE, "fl/in"): self.participant.take_round,
            topics.device(DEVICE, "ack"): self.participant.take_request,
            topics.JOBS: self.participant.take_job,
        }

    def reported(self) -> Reported:
        return Reported(device=DEVICE, agent="0", profile="generic-cpu")

    async def connected(self) -> None:
        await self.participant.connected()


class Stage:
    """The coordinator's side."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.broker = LoopbackBroker()
        self.fleet = SignedFleet()
        self.bundle: Bundle = trainable_bundle(folder / "m.edgert")
        self.store = Store(folder / "server")
        self.link = Link(
            LoopbackTransport(Broker("loopback", 1, "ota-server"), self.broker),
            SystemClock(),
        )
        self.fetcher = Fetcher(self._ask, SystemClock(), timeout_s=0.2)
        self.start = unpack_weights(self.bundle.read(self.bundle.require("weights")))
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Stage":
        await self.link.transport.connect()
        self.said: Subscription = await self.link.listen(topics.every_device("fl/out"))
        puts = await self.link.listen(topics.every_device("put"))
        gets = await self.link.listen(topics.every_device("get"))
        self._tasks = [asyncio.ensure_future(self._take(puts)), asyncio.ensure_future(self._give(gets))]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.link.transport.close()

    async def _take(self, puts: Subscription) -> None:
        async for delivery in puts:
            self.fetcher.deliver(delivery.payload)

    async def _give(self, gets: Subscription) -> None:
        async for delivery in gets:
            frame = answer(Get.decode(delivery.payload), StoreSource(self.store))
            await self.link.send_raw(topics.device(DEVICE, "data"), frame.encode(), qos=0)

    async def _ask(self, get: Get) -> None:
        await self.tell("ack", get)

    async def tell(self, leaf: str, message: Message) -> None:
        await self.link.send(topics.device(DEVICE, leaf), message)

    def plan(self, **changes: object) -> Plan:
        words: dict[str, object] = {
            "job": "job1", "model": MODEL, "base": self.bundle.digest, "rounds": 2, "participants": 1, "quorum": 1,
            "deadline_s": 30, "local": LocalTraining(epochs=2), "issued": START, "expires": START + timedelta(days=1),
        }  # fmt: skip
        return Plan.model_validate(words | changes)

    async def announce(self, plan: Plan, key: SigningKey | None = None) -> None:
        envelope = sign(JOB_TYPE, plan.encode(), key or self.fleet.federation)
        await self.link.send_raw(topics.job(plan.job), envelope, retain=True)

    def invite(self, number: int = 1) -> Invite:
        weights = self.bundle.require("weights")
        return Invite(job="job1", round=number, weights=weights.digest, weights_bytes=weights.size_bytes, deadline_s=30)

    async def hears(self, timeout_s: float = 20) -> Join | Offer | Decline:
        async with asyncio.timeout(timeout_s):
            return decode_up((await anext(self.said)).payload)

    async def hears_nothing(self) -> None:
        """Nothing on its way: a marker that is sent now is the next thing that arrives."""
        await self.link.send(topics.device("marker", "fl/out"), Decline(job="marker", round=1, reason=""))
        assert await self.hears() == Decline(job="marker", round=1, reason="")

    async def offered(self, box: LearningBox) -> Offer:
        box.activate()
        box.start()
        await self.announce(self.plan())
        assert await self.hears() == Join(job="job1", examples=41)
        await self.tell("fl/in", self.invite())
        offer = await self.hears()
        assert isinstance(offer, Offer), offer
        return offer


async def a_moment() -> None:
    """Let everything that is ready run."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "stage")


def test_a_box_joins_trains_offers_and_gives_its_update_to_the_server_alone(stage: Stage, tmp_path: Path) -> None:
    async def play() -> None:
        box = LearningBox(tmp_path / "box", stage, examples=examples_folder(tmp_path / "examples"))
        async with stage:
            offer = await stage.offered(box)
            assert (offer.round, offer.examples) == (1, 41)
            data = await stage.fetcher.fetch_bytes(offer.update, limit_bytes=offer.update_bytes)
            assert (digest(data), len(data)) == (offer.update, offer.update_bytes)
            delta = unpack_weights(data)
            assert set(delta) == set(stage.start)
            assert any(np.abs(value).max() > 0 for value in delta.values())
            assert all(np.isfinite(value).all() for value in moved(stage.start, delta).values())
            with pytest.raises(TransferError):
                await stage.fetcher.fetch_bytes(stage.bundle.digest, limit_bytes=1 << 20, deadline_s=1)
            await stage.tell("ack", Done(name=offer.update))
            with pytest.raises(TransferError):
                await stage.fetcher.fetch_bytes(offer.update, limit_bytes=1 << 20, deadline_s=1)
            await box.stop()

    run(play())


def test_a_repeated_invitation_is_answered_with_the_same_offer(stage: Stage, tmp_path: Path) -> None:
    async def play() -> None:
        box = LearningBox(tmp_path / "box", stage, examples=examples_folder(tmp_path / "examples"))
        async with stage:
            offer = await stage.offered(box)
            await stage.tell("fl/in", stage.invite())
            assert await stage.hears() == offer
            await box.stop()

    run(play())


def test_an_offer_outlives_a_restart_and_a_lost_connection(stage: Stage, tmp_path: Path) -> None:
    async def play() -> None:
        examples = examples_folder(tmp_path / "examples")
        box = LearningBox(tmp_path / "box", stage, examples=examples)
        async with stage:
            offer = await stage.offered(box)
            stage.broker.drop(DEVICE)
            await box.stop()
            again = LearningBox(tmp_path / "box", stage, examples=examples)
            again.start()
            heard = [await stage.hears(), await stage.hears()]
            assert offer in heard
            data = await stage.fetcher.fetch_bytes(offer.update, limit_bytes=offer.update_bytes)
            assert digest(data) == offer.update
            await again.stop()

    run(play())


def test_a_round_that_is_over_takes_the_offer_back(stage: Stage, tmp_path: Path) -> None:
    async def play() -> None:
        box = LearningBox(tmp_path / "box", stage, examples=examples_folder(tmp_path / "examples"))
        async with stage:
            offer = await stage.offered(box)
            await stage.tell("fl/in", RoundOver(job="job1", round=1))
            with pytest.raises(TransferError):
                await stage.fetcher.fetch_bytes(offer.update, limit_bytes=1 << 20, deadline_s=1)
            await box.stop()
        left = [path.name for path in (tmp_path / "box" / "federated").rglob("*") if path.is_file()]
        assert left == []

    run(play())


def test_the_second_round_starts_from_the_weights_of_the_coordinator(stage: Stage, tmp_path: Path) -> None:
    async def play() -> None:
        box = LearningBox(tmp_path / "box", stage, examples=examples_folder(tmp_path / "examples"))
        weights = pack_arrays({name: value * np.float32(0.5) for name, value in stage.start.items()})
        stage.store.add(weights)
        async with stage:
            first = await stage.offered(box)
            second = Invite(job="job1", round=2, weights=digest(weights), weights_bytes=len(weights), deadline_s=30)
            await stage.tell("fl/in", second)
            offer = await stage.hears()
            assert isinstance(offer, Offer)
            assert (offer.round, offer.update != first.update) == (2, True)
            await box.stop()
        assert not box.store.has(digest(weights))

    run(play())


def test_the_same_box_learns_the_same_in_the_same_round(stage: Stage, tmp_path: Path) -> None:
    async def play() -> None:
        offers = []
        examples = examples_folder(tmp_path / "examples")
        async with stage:
            for number in (1, 2):
                box = LearningBox(tmp_path / f"box{number}", stage, examples=examples)
                offers.append(await stage.offered(box))
                await box.stop()
        assert offers[0] == offers[1]

    run(play())


@pytest.mark.parametrize("case", ["no examples", "another bundle", "expired", "foreign key", "rubbish", "other name"])
def test_a_box_is_quiet_about_jobs_it_cannot_or_may_not_take_part_in(case: str, stage: Stage, tmp_path: Path) -> None:
    async def play() -> None:
        examples = None if case == "no examples" else examples_folder(tmp_path / "examples")
        box = LearningBox(tmp_path / "box", stage, examples=examples)
        async with stage:
            box.activate()
            box.start()
            plan = stage.plan()
            match case:
                case "another bundle":
                    plan = stage.plan(base="sha256:" + "0" * 64)
                case "expired":
                    plan = stage.plan(issued=START - timedelta(days=3), expires=START)
            key = SigningKey() if case == "foreign key" else None
            if case == "rubbish":
                await stage.link.send_raw(topics.job("job1"), b"{", retain=True)
            elif case == "other name":
                envelope = sign(JOB_TYPE, plan.encode(), stage.fleet.federation)
                await stage.link.send_raw(topics.job("job2"), envelope, retain=True)
            else:
                await stage.announce(plan, key)
            await a_moment()
            await stage.tell("fl/in", stage.invite())
            await a_moment()
            await stage.hears_nothing()
            await box.stop()

    run(play())


def test_a_job_is_joined_as_soon_as_its_bundle_answers(stage: Stage, tmp_path: Path) -> None:
    async def play() -> None:
        box = LearningBox(tmp_path / "box", stage, examples=examples_folder(tmp_path / "examples"))
        async with stage:
            box.start()
            await stage.announce(stage.plan())
            await a_moment()
            await stage.hears_nothing()
            box.activate()
            assert await stage.hears() == Join(job="job1", examples=41)
            await box.stop()

    run(play())


def test_training_that_fails_is_declined_without_a_word_about_the_examples(stage: Stage, tmp_path: Path) -> None:
    async def play() -> None:
        examples = examples_folder(tmp_path / "examples")
        bad = pack_arrays({"image": np.zeros((3, 1, 9, 9), np.float32), "labels": np.array([7, 7, 7])})
        (examples / "2.npz").write_bytes(bad)
        box = LearningBox(tmp_path / "box", stage, examples=examples)
        async with stage:
            box.activate()
            box.start()
            await stage.announce(stage.plan())
            assert await stage.hears() == Join(job="job1", examples=44)
            await stage.tell("fl/in", stage.invite())
            told = await stage.hears()
            assert told == Decline(job="job1", round=1, reason="TrialError on this box; its log says more")
            await box.stop()

    run(play())


def test_a_deadline_ends_the_training_child(stage: Stage, tmp_path: Path) -> None:
    async def play() -> None:
        box = LearningBox(tmp_path / "box", stage, examples=examples_folder(tmp_path / "examples"))
        async with stage:
            box.activate()
            box.start()
            await stage.announce(stage.plan(deadline_s=0.05))
            await stage.hears()
            await stage.tell("fl/in", stage.invite())
            assert isinstance(await stage.hears(), Decline)
            await box.stop()

    run(play())


@pytest.mark.parametrize("extra", [1, 1 << 40])
def test_an_invitation_with_weights_of_a_size_that_cannot_be_is_declined(
    extra: int, stage: Stage, tmp_path: Path
) -> None:
    async def play() -> None:
        box = LearningBox(tmp_path / "box", stage, examples=examples_folder(tmp_path / "examples"))
        async with stage:
            await stage.offered(box)
            size = 2 * stage.invite().weights_bytes + (1 << 20) + extra
            lie = Invite(job="job1", round=2, weights=digest(b"large"), weights_bytes=size, deadline_s=30)
            await stage.tell("fl/in", lie)
            answer = await stage.hears()
            assert isinstance(answer, Decline)
            assert answer.round == 2
            await box.stop()
        assert not (tmp_path / "box" / "federated" / "store" / "partial" / lie.weights[7:]).exists()

    run(play())


def test_invitations_of_unknown_jobs_are_few(stage: Stage, tmp_path: Path) -> None:
    async def play() -> None:
        box = LearningBox(tmp_path / "box", stage, examples=None)
        for number in range(500):
            message = stage.invite().model_copy(update={"job": f"job{number}"})
            await box.participant.take_round(Delivery("x", message.encode(), retained=False))
        assert len(box.participant._early) <= 64

    run(play())


def test_weights_of_earlier_rounds_make_room_and_offers_stay(tmp_path: Path) -> None:
    offers = Offers(tmp_path)
    invite = Invite(job="job1", round=1, weights=digest(b"first"), weights_bytes=5, deadline_s=30)
    offer = offers.keep(invite, b"update", examples=1, loss=0.5, expires=START)
    store = offers.store
    old, wanted = store.add(b"old weights"), digest(b"wanted")
    for path in (store.partial(digest(b"older")), store.partial(wanted), store.partial(wanted).with_suffix(".have")):
        path.write_bytes(b"half")
    offers.make_room(wanted)
    assert (store.has(old), store.has(offer.update)) == (False, True)
    assert sorted(path.name for path in (store.root / "partial").iterdir()) == [wanted[7:], f"{wanted[7:]}.have"]
