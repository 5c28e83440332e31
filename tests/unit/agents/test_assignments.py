"""Only a Desired that a fleet key signed for this box, newer than the last, is followed."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from agents.state import Memory, StateFolder
from agents.update.assignments import Assignments, Refusal
from edgert.envelope import DESIRED_TYPE, JOB_TYPE, SigningKey, sign
from edgert.errors import EdgeRTError, LinkError, RefusedError
from edgert.wire.fleet import FleetKeys
from edgert.wire.twin import Desired
from tests.support.signed import START, SignedFleet


def desired(revision: int = 2, device: str = "box1", *, age: int = 0, lives: int = 10) -> Desired:
    issued = START - timedelta(days=age)
    return Desired(device=device, revision=revision, issued=issued, expires=issued + timedelta(days=lives), models=())


class Judge:
    """`Assignments` with keys that can be out of reach."""

    def __init__(self, folder: Path) -> None:
        self.fleet = SignedFleet()
        self.state = StateFolder(folder)
        self.followed: list[int] = []
        self.trouble: list[EdgeRTError] = []
        self.seen = asyncio.Event()
        self.assignments = Assignments(
            "box1",
            self,
            self.state,
            follow=lambda accepted: self.followed.append(accepted.revision),
            changed=self.seen.set,
            now=lambda: START,
            retry_s=0.001,
        )

    async def fleet_keys(self) -> FleetKeys:
        if self.trouble:
            raise self.trouble.pop(0)
        return self.fleet.fleet_keys()

    async def known_keys(self) -> FleetKeys:
        return self.fleet.fleet_keys()

    def signed(self, what: Desired, key: SigningKey | None = None, kind: str = DESIRED_TYPE) -> bytes:
        return sign(kind, what.encode(), key or self.fleet.assignment)

    async def judged(self, *payloads: bytes) -> Refusal:
        """Hand in messages one after the other; gives what is refused in the end."""
        task = asyncio.ensure_future(self.assignments.run())
        try:
            for payload in payloads:
                self.seen.clear()
                self.assignments.receive(payload)
                async with asyncio.timeout(5):
                    await self.seen.wait()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return self.assignments.refusal


def test_a_signed_assignment_is_remembered_and_followed(tmp_path: Path) -> None:
    async def run() -> None:
        judge = Judge(tmp_path)
        assert await judge.judged(judge.signed(desired(2))) == Refusal()
        assert judge.followed == [2]
        assert judge.state.memory() == Memory(desired=desired(2), not_before=START)

    asyncio.run(run())


def test_what_was_followed_is_followed_again_after_a_restart_without_any_message(tmp_path: Path) -> None:
    async def run() -> None:
        first = Judge(tmp_path)
        await first.judged(first.signed(desired(2)))
        again = Judge(tmp_path)
        task = asyncio.ensure_future(again.assignments.run())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert again.followed == [2]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (desired(2, "box2"), "is for device box2"),
        (desired(2, age=20), "expired"),
        (desired(2, lives=-1), "expired"),
    ],
    ids=["foreign", "expired", "never valid"],
)
def test_an_assignment_that_is_not_for_us_now_is_refused_and_changes_nothing(
    what: Desired, words: str, tmp_path: Path
) -> None:
    async def run() -> None:
        judge = Judge(tmp_path)
        refusal = await judge.judged(judge.signed(what))
        assert words in refusal.error
        assert (judge.followed, judge.state.memory()) == ([], Memory())

    asyncio.run(run())


def test_an_older_revision_is_a_replay(tmp_path: Path) -> None:
    async def run() -> None:
        judge = Judge(tmp_path)
        refusal = await judge.judged(judge.signed(desired(5)), judge.signed(desired(4)))
        assert "revision 4, we follow 5 already" in refusal.error
        assert judge.state.memory().revision == 5

    asyncio.run(run())


def test_the_same_revision_again_clears_a_refusal(tmp_path: Path) -> None:
    async def run() -> None:
        judge = Judge(tmp_path)
        good = judge.signed(desired(5))
        assert await judge.judged(good, judge.signed(desired(4)), good) == Refusal()
        assert judge.followed == [5, 5]

    asyncio.run(run())


@pytest.mark.parametrize("kind", [DESIRED_TYPE, JOB_TYPE])
def test_keys_that_may_not_assign_are_refused(kind: str, tmp_path: Path) -> None:
    async def run() -> None:
        judge = Judge(tmp_path)
        for key in (SigningKey(), judge.fleet.federation):
            refusal = await judge.judged(judge.signed(desired(2), key, kind))
            assert refusal.error
            judge.assignments.refusal = Refusal()
        assert judge.followed == []

    asyncio.run(run())


def test_an_envelope_of_another_kind_is_refused_though_the_key_is_right(tmp_path: Path) -> None:
    async def run() -> None:
        judge = Judge(tmp_path)
        refusal = await judge.judged(judge.signed(desired(2), kind=JOB_TYPE))
        assert "expected" in refusal.error

    asyncio.run(run())


@pytest.mark.parametrize(
    "payload",
    [b"{", b"[]", b"\xff", b'{"payload": "?", "payloadType": "x", "signatures": []}', b"x" * 100_000],
)
def test_rubbish_is_refused_and_the_next_message_is_taken(payload: bytes, tmp_path: Path) -> None:
    async def run() -> None:
        judge = Judge(tmp_path)
        assert (await judge.judged(payload)).error
        assert await judge.judged(judge.signed(desired(2))) == Refusal()
        assert judge.followed == [2]

    asyncio.run(run())


def test_a_signed_thing_that_is_no_assignment_is_refused(tmp_path: Path) -> None:
    async def run() -> None:
        judge = Judge(tmp_path)
        refusal = await judge.judged(sign(DESIRED_TYPE, b'{"revision": "x"}', judge.fleet.assignment))
        assert "not a Desired" in refusal.error

    asyncio.run(run())


@pytest.mark.parametrize("trouble", [LinkError("the broker is away"), RefusedError("timestamp.json is expired")])
def test_an_assignment_whose_keys_cannot_be_had_is_judged_again_later(trouble: EdgeRTError, tmp_path: Path) -> None:
    async def run() -> None:
        judge = Judge(tmp_path)
        judge.trouble = [trouble, trouble]
        task = asyncio.ensure_future(judge.assignments.run())
        judge.assignments.receive(judge.signed(desired(2)))
        async with asyncio.timeout(5):
            while not judge.followed:
                await judge.seen.wait()
                judge.seen.clear()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert judge.assignments.refusal == Refusal()

    asyncio.run(run())


def test_time_that_a_signature_proved_is_kept_though_the_clock_goes_back(tmp_path: Path) -> None:
    async def run() -> None:
        judge = Judge(tmp_path)
        late = desired(2).model_copy(update={"issued": START + timedelta(days=5), "expires": START + timedelta(days=9)})
        await judge.judged(judge.signed(late))
        short = desired(3, lives=4)
        refusal = await judge.judged(judge.signed(short))
        assert "expired" in refusal.error, "the clock says it is still good, signatures have proved otherwise"

    asyncio.run(run())
