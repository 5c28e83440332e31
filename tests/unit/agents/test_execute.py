"""The shell of the update machine: troubles that pass, troubles that do not, newer wishes, going back by hand."""

import asyncio
from pathlib import Path

import pytest

from agents.update.execute import Updater
from agents.update.group import Updates
from agents.update.machine import RESTING, State
from edgert.errors import BundleError, LinkError, NotFoundError, RefusedError, StoreError, TransferError
from edgert.store import Store
from tests.support.box import MODEL, Fleet, TestBox, following, rested, verdict


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "fleet")


@pytest.mark.parametrize("name", ["image", "bytes", "blob"])
@pytest.mark.parametrize("error", [LinkError("the broker is away"), TransferError("nothing new for 30 s")])
def test_a_way_that_is_closed_for_a_while_only_delays(
    name: str, error: LinkError | TransferError, tmp_path: Path, fleet: Fleet
) -> None:
    async def run() -> None:
        fleet.trouble = {name: error}
        box = TestBox(tmp_path / "box", fleet)
        state = await following(box, 2)
        assert (state.phase, box.version()) == ("IDLE", 2)
        assert error.message in [event.error for event in box.events], "the wait was told, with its reason"

    asyncio.run(run())


@pytest.mark.parametrize("error", [RefusedError("timestamp.json is expired"), NotFoundError("not there yet")])
def test_refused_metadata_is_reported_as_a_failure_and_looked_at_again(
    error: RefusedError | NotFoundError, tmp_path: Path, fleet: Fleet
) -> None:
    async def run() -> None:
        fleet.trouble = {"image": error}
        box = TestBox(tmp_path / "box", fleet)
        box.install(1)
        box.boot()
        updater = box.updater()
        updater.assign(fleet.assignments[2], 1)
        state = await rested(box, updater, lambda state: state.phase == "FAILED")
        assert (state.error, box.version()) == (error.message, 1)
        state = await rested(box, box.updater(), lambda state: state.phase == "IDLE")
        assert box.version() == 2

    asyncio.run(run())


def test_bytes_that_are_not_the_signed_ones_fail_for_good(tmp_path: Path, fleet: Fleet) -> None:
    async def run() -> None:
        fleet.trouble = {"blob": BundleError("the downloaded bytes are not blob x")}
        box = TestBox(tmp_path / "box", fleet)
        box.install(1)
        state = await following(box, 2)
        assert (state.phase, state.passing, box.version()) == ("FAILED", False, 1)
        asked = len(fleet.asked)
        await following(box, 2)
        assert len(fleet.asked) == asked, "the same revision does not make it try again"
        state = await following(box, 2, revision=2)
        assert (state.phase, box.version()) == ("IDLE", 2)

    asyncio.run(run())


def test_a_bundle_for_another_profile_is_refused_before_its_artifacts_are_fetched(tmp_path: Path, fleet: Fleet) -> None:
    async def run() -> None:
        box = TestBox(tmp_path / "box", fleet, profiles=("raspberry-pi-4",))
        state = await following(box, 2)
        assert state.phase == "FAILED"
        assert "is for profile generic-cpu, this box is raspberry-pi-4" in state.error
        assert "blob" not in fleet.asked

    asyncio.run(run())


def test_a_damaged_blob_on_the_disk_is_noticed_and_fetched_again(tmp_path: Path, fleet: Fleet) -> None:
    async def run() -> None:
        box = TestBox(tmp_path / "box", fleet)
        box.install(1)
        infer = fleet.bundle(2).require("infer")
        box.store.path(infer.digest).write_bytes(bytes(infer.size_bytes))
        box.boot()
        updater = box.updater()
        updater.assign(fleet.assignments[2], 1)
        state = await rested(box, updater, lambda state: state.phase == "FAILED")
        assert "is damaged" in state.error
        await rested(box, box.updater(), lambda state: state.phase == "IDLE")
        assert box.version() == 2

    asyncio.run(run())


def test_without_a_journal_nothing_is_done_and_the_reason_is_told(tmp_path: Path, fleet: Fleet) -> None:
    async def run() -> None:
        box = TestBox(tmp_path / "box", fleet, retry_s=60)
        box.install(1)
        box.journal.parent.rmdir()
        box.journal.parent.write_text("in the way")
        state = await following(box, 2)
        assert (state.phase, box.version(), fleet.asked) == ("FAILED", 1, [])
        assert "cannot write" in state.error

    asyncio.run(run())


def test_a_damaged_journal_costs_work_but_no_model(tmp_path: Path, fleet: Fleet) -> None:
    async def run() -> None:
        box = TestBox(tmp_path / "box", fleet)
        box.install(1)
        box.journal.write_bytes(b'{"model": "ti')
        state = await following(box, 2)
        assert (state.phase, box.version()) == ("IDLE", 2)

    asyncio.run(run())


def test_a_newer_assignment_ends_a_download_that_stands_still(tmp_path: Path, fleet: Fleet) -> None:
    class Stuck(Fleet):
        async def fetch_blob(self, store: Store, digest: str, size_bytes: int, **_: object) -> None:
            await asyncio.Event().wait()

    async def run() -> None:
        box = TestBox(tmp_path / "box", Stuck(tmp_path / "stuck"))
        box.install(1)
        updater = box.updater()

        def turn_back(state: State) -> bool:
            return state.revision == 2

        async def newer() -> None:
            while updater.state.phase != "DOWNLOAD":
                await box.changed.wait()
                await asyncio.sleep(0)
            updater.assign(fleet.assignments[1], 2)

        updater.assign(fleet.assignments[2], 1)
        wish = asyncio.ensure_future(newer())
        state = await rested(box, updater, turn_back)
        await wish
        assert (state.phase, box.version()) == ("IDLE", 1)

    asyncio.run(run())


def test_the_operator_of_the_box_goes_back_and_the_same_assignment_does_not_undo_it(
    tmp_path: Path, fleet: Fleet
) -> None:
    async def run() -> None:
        box = TestBox(tmp_path / "box", fleet)
        box.install(1)
        await following(box, 2)
        updater = box.updater()
        done = updater.withdraw(1)
        state = await rested(box, updater, lambda state: state.phase == "FAILED")
        assert (await done).phase == "FAILED"
        assert (box.version(), box.serving.answers) == (1, {MODEL: 1})
        assert "taken back from version 2 to 1" in state.error
        await following(box, 2)
        assert box.version() == 1
        await following(box, 2, revision=2)
        assert box.version() == 2

    asyncio.run(run())


def test_there_must_be_something_to_go_back_to(tmp_path: Path, fleet: Fleet) -> None:
    async def run() -> None:
        box = TestBox(tmp_path / "box", fleet)
        box.install(1)
        updater = box.updater()
        done = updater.withdraw(1)
        task = asyncio.ensure_future(updater.run())
        with pytest.raises(RefusedError, match="is empty"):
            async with asyncio.timeout(5):
                await done
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert box.version() == 1

    asyncio.run(run())


def test_a_wish_that_was_taken_back_is_not_granted_later(tmp_path: Path, fleet: Fleet) -> None:
    async def run() -> None:
        box = TestBox(tmp_path / "box", fleet)
        box.install(1)
        await following(box, 2)
        updater = box.updater()
        updater.withdraw(1).cancel()
        await rested(box, updater)
        assert box.version() == 2

    asyncio.run(run())


def test_progress_of_a_download_is_told_in_bytes(tmp_path: Path, fleet: Fleet) -> None:
    async def run() -> None:
        box = TestBox(tmp_path / "box", fleet)
        await following(box, 2)
        told = [event for event in box.events if event.total_bytes]
        assert told
        assert told[-1].phase == "DOWNLOAD"
        assert 0 < told[-1].done_bytes <= told[-1].total_bytes

    asyncio.run(run())


def test_old_blobs_are_thrown_away_but_not_under_another_update(tmp_path: Path, fleet: Fleet) -> None:
    async def run() -> None:
        box = TestBox(tmp_path / "box", fleet)
        stray = box.store.add(b"of another update")
        busy = State(model="other", phase="DOWNLOAD", assignment=fleet.assignments[1])
        (box.journal.parent / "other.json").write_bytes(busy.model_dump_json().encode())
        updates = Updates(box.box, box.journal.parent)
        await updates._tidy()
        assert box.store.has(stray) is False, "one busy machine is the one that tidies"
        stray = box.store.add(b"of another update")
        (box.journal.parent / "third.json").write_bytes(
            busy.model_copy(update={"model": "third"}).model_dump_json().encode()
        )
        updates = Updates(box.box, box.journal.parent)
        await updates._tidy()
        assert box.store.has(stray)

    asyncio.run(run())


def test_one_machine_that_breaks_does_not_stop_the_others(tmp_path: Path, fleet: Fleet) -> None:
    async def run() -> None:
        box = TestBox(tmp_path / "box", fleet)
        box.install(1)
        (box.journal.parent / "odd.json").write_bytes(
            State(model="odd", phase="STAGE", assignment=None).model_dump_json().encode()
        )
        updates = Updates(box.box, box.journal.parent)
        task = asyncio.ensure_future(updates.run())
        updates.assign((fleet.assignments[2],), 1)
        async with asyncio.timeout(10):
            while updates.states()[MODEL].phase != "IDLE" or updates.states()[MODEL].revision != 1:
                box.changed.clear()
                await box.changed.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert box.version() == 2
        assert updates.states()["odd"].phase in RESTING

    asyncio.run(run())


def test_a_full_disk_is_said_before_anything_is_fetched(tmp_path: Path, fleet: Fleet) -> None:
    class Full(Store):
        def free_bytes(self) -> int:
            return 1 << 20

    async def run() -> None:
        box = TestBox(tmp_path / "box", fleet)
        box.install(1)
        box.box = type(box.box)(**{**vars(box.box), "store": Full(box.store.root)})
        state = await following(box, 2)
        assert (state.phase, state.passing, box.version()) == ("FAILED", True, 1)
        assert "the disk has 1048576 free" in state.error
        assert "blob" not in fleet.asked

    asyncio.run(run())


def test_a_trial_that_cannot_even_start_keeps_the_old_version(tmp_path: Path, fleet: Fleet) -> None:
    def no_memory(store: Store, bundle: object) -> object:
        raise StoreError("cannot start a child process", hint="make memory free")

    async def run() -> None:
        box = TestBox(tmp_path / "box", fleet, trial=no_memory)  # type: ignore[arg-type]
        box.install(1)
        state = await following(box, 2)
        assert (state.phase, box.version(), state.hint) == ("FAILED", 1, "make memory free")

    asyncio.run(run())


def test_the_journal_of_another_model_is_not_taken_for_ours(tmp_path: Path, fleet: Fleet) -> None:
    box = TestBox(tmp_path / "box", fleet, trial=lambda store, bundle: verdict(True))
    box.journal.write_bytes(State(model="other", phase="TRIAL").model_dump_json().encode())

    async def tidy() -> None: ...

    assert Updater(MODEL, box.box, box.journal, tidy).state == State(model=MODEL)


def test_what_the_fleet_no_longer_assigns_is_not_tried_again_and_what_answers_goes_on(
    tmp_path: Path, fleet: Fleet
) -> None:
    async def run() -> None:
        fleet.trouble = {"image": RefusedError("timestamp.json is expired")}
        box = TestBox(tmp_path / "box", fleet, retry_s=60)
        box.install(1)
        updates = Updates(box.box, box.journal.parent)
        task = asyncio.ensure_future(updates.run())

        async def until(phase: str, revision: int) -> None:
            async with asyncio.timeout(10):
                while (updates.states()[MODEL].phase, updates.states()[MODEL].revision) != (phase, revision):
                    box.changed.clear()
                    await box.changed.wait()

        updates.assign((fleet.assignments[2],), 1)
        await until("FAILED", 1)
        updates.assign((), 2)
        await until("IDLE", 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (box.version(), updates.states()[MODEL].assignment) == (1, None)

    asyncio.run(run())
