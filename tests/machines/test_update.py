"""The update machine: every edge of its table, every event it must not get, and death at every state."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from agents.update.execute import Updater
from agents.update.machine import RESTING, TRANSITIONS, Effect, Event, Kind, State, step, wanted
from edgert.bundle import Bundle
from edgert.errors import FaultError, StoreError
from edgert.store import Store
from edgert.trial import Verdict
from edgert.wire.messages import device
from edgert.wire.twin import Assignment, Phase
from tests.support.box import MODEL, Fleet, PowerCut, TestBox, following, rested, verdict

PHASES: tuple[Phase, ...] = get_args(Phase)
KINDS: tuple[Kind, ...] = get_args(Kind)
EDGES = sorted(TRANSITIONS)
FORBIDDEN = [(phase, kind) for phase in PHASES for kind in KINDS if (phase, kind) not in TRANSITIONS]
OLD = Assignment(model=MODEL, version=1, target="t/1", digest="sha256:" + "1" * 64, size_bytes=10)
NEW = Assignment(model=MODEL, version=2, target="t/2", digest="sha256:" + "2" * 64, size_bytes=10)


def at(phase: Phase) -> State:
    return State(model=MODEL, phase=phase, assignment=OLD, revision=1, slot="B", back="A", attempts=2, error="before")


def event(kind: Kind) -> Event:
    return Event(kind=kind, assignment=NEW, revision=2, slot="B", back="A", error="why", hint="what to do")


@pytest.mark.parametrize(("phase", "kind"), EDGES)
def test_every_edge_leads_where_the_table_says(phase: Phase, kind: Kind) -> None:
    state, effects = step(at(phase), event(kind))
    assert (state.phase, tuple(effects)) == TRANSITIONS[phase, kind]


@pytest.mark.parametrize(("phase", "kind"), EDGES)
def test_nothing_is_done_before_the_intention_is_durable_and_told(phase: Phase, kind: Kind) -> None:
    before = at(phase)
    state, effects = step(before, event(kind))
    assert effects[-1] == "report" or effects[-2] == "report"
    if (state.phase, kind) != (before.phase, "resumed"):
        assert effects[0] == "journal"


@pytest.mark.parametrize(("phase", "kind"), FORBIDDEN)
def test_an_event_that_no_row_accepts_is_an_error(phase: Phase, kind: Kind) -> None:
    with pytest.raises(FaultError, match=f"{kind!r} in phase {phase}"):
        step(at(phase), event(kind))


def test_every_phase_can_be_resumed_and_every_phase_but_the_resting_ones_does_something() -> None:
    for phase in PHASES:
        _, effects = step(at(phase), event("resumed"))
        assert tuple(effects) == ("report",) if phase in RESTING else effects[-1] in get_args(Effect)


def test_every_phase_is_reached_from_idle() -> None:
    reached: set[Phase] = {"IDLE"}
    for _ in PHASES:
        reached |= {after for (before, _), (after, _) in TRANSITIONS.items() if before in reached}
    assert reached == set(PHASES)


def test_only_switch_and_rollback_and_commit_cannot_be_turned_away() -> None:
    assert {phase for phase in PHASES if (phase, "assigned") not in TRANSITIONS} == {"SWITCH", "COMMIT", "ROLLBACK"}


def test_a_failed_version_is_not_wanted_again_before_a_new_revision() -> None:
    failed = State(model=MODEL, phase="FAILED", assignment=NEW, revision=5)
    assert wanted(failed, NEW, 5, None) is None
    assert wanted(failed, NEW, 6, None) == "assigned"
    assert wanted(failed, OLD, 5, None) == "assigned"


def test_what_is_under_way_is_not_begun_again() -> None:
    assert wanted(at("DOWNLOAD"), OLD, 2, None) is None
    assert wanted(at("DOWNLOAD"), NEW, 2, None) == "assigned"


# The table with its shell


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "fleet")


def broken_trial(_: Store, bundle: Bundle) -> Verdict:
    return verdict(False, "the outputs differ")


def dies_at(phase: str) -> Callable[[device.Event], None]:
    def tell(event: device.Event) -> None:
        if event.phase == phase:
            raise PowerCut

    return tell


def test_an_update_goes_through_all_phases_and_the_new_version_answers(tmp_path: Path, fleet: Fleet) -> None:
    async def run() -> None:
        box = TestBox(tmp_path / "box", fleet)
        box.install(1)
        state = await following(box, 2)
        assert state.phase == "IDLE"
        assert box.phases == [
            "IDLE", "CHECK", "PLAN", "DOWNLOAD", "VERIFY", "STAGE", "TRIAL", "SWITCH", "COMMIT", "IDLE",
        ]  # fmt: skip
        assert (box.version(), box.serving.answers) == (2, {MODEL: 2})
        assert box.store.slot(MODEL, "A") == fleet.slot(1), "the old version stays in its slot"

    asyncio.run(run())


@pytest.mark.parametrize("first", [True, False], ids=["first model", "second version"])
@pytest.mark.parametrize("lost_record", [False, True], ids=["before the effect", "after it, record lost"])
@pytest.mark.parametrize("phase", ["CHECK", "PLAN", "DOWNLOAD", "VERIFY", "STAGE", "TRIAL", "SWITCH", "COMMIT", "IDLE"])
def test_a_box_that_dies_at_any_state_finishes_the_update_after_the_restart(
    phase: str, lost_record: bool, first: bool, tmp_path: Path, fleet: Fleet
) -> None:
    records: list[bytes] = []

    def tell(event: device.Event) -> None:
        if box.journal.exists():
            records.append(box.journal.read_bytes())
        dies_at(phase)(event)

    async def die() -> None:
        box.boot()
        updater = box.updater()
        updater.assign(fleet.assignments[2], 1)
        with pytest.raises(PowerCut):
            await rested(box, updater, lambda state: False)

    async def run() -> None:
        again = TestBox(tmp_path / "box", fleet)
        again.boot()
        assert again.version() in (0 if first else 1, 2), "whatever happened, a whole bundle is active"
        updater = again.updater()
        updater.assign(fleet.assignments[2], 1)
        state = await rested(again, updater, lambda state: state.assignment is not None)
        assert (state.phase, again.version(), again.serving.answers) == ("IDLE", 2, {MODEL: 2})

    box = TestBox(tmp_path / "box", fleet, tell=tell if phase != "IDLE" else lambda event: None)
    if not first:
        box.install(1)
    if phase == "IDLE":
        asyncio.run(_finish(box))
    else:
        asyncio.run(die())
    if lost_record and len(records) > 1:
        box.journal.write_bytes(records[-2])
    asyncio.run(run())


async def _finish(box: TestBox) -> None:
    await following(box, 2)


@pytest.mark.parametrize("cause", ["trial", "load"])
@pytest.mark.parametrize("phase", ["SWITCH", "ROLLBACK", "FAILED"])
def test_a_box_that_dies_while_going_back_ends_with_the_old_version(
    phase: str, cause: str, tmp_path: Path, fleet: Fleet
) -> None:
    def box(tell: Callable[[device.Event], None]) -> TestBox:
        made = TestBox(tmp_path / "box", fleet, tell=tell, trial=broken_trial if cause == "trial" else None)
        made.serving.broken = {2} if cause == "load" else set()
        return made

    async def run() -> None:
        first = box(dies_at(phase))
        first.install(1)
        if (phase, cause) != ("SWITCH", "trial"):
            with pytest.raises(PowerCut):
                await following(first, 2)
        again = box(lambda event: None)
        state = await following(again, 2)
        again.boot()
        assert (state.phase, again.version(), again.serving.answers) == ("FAILED", 1, {MODEL: 1})
        assert state.error
        assert state.hint

    asyncio.run(run())


def test_a_failed_trial_leaves_the_old_version_and_says_why(tmp_path: Path, fleet: Fleet) -> None:
    async def run() -> None:
        box = TestBox(tmp_path / "box", fleet, trial=broken_trial)
        box.install(1)
        state = await following(box, 2)
        assert (state.phase, box.version(), box.serving.answers) == ("FAILED", 1, {MODEL: 1})
        assert "the outputs differ" in state.error
        assert box.phases[-3:] == ["TRIAL", "ROLLBACK", "FAILED"]

    asyncio.run(run())


@pytest.mark.parametrize("content", [b"", b"{torn", b"\xff", b'{"digest": "x"}'])
@pytest.mark.parametrize("broken", ["other slot", "active slot"])
def test_an_update_mends_a_damaged_slot_and_ends(broken: str, content: bytes, tmp_path: Path, fleet: Fleet) -> None:
    """The rest of the box goes on: damage to what answers now is no reason to refuse what would mend it."""

    async def run() -> None:
        box = TestBox(tmp_path / "box", fleet)
        box.install(1)
        box.install(2)
        box.install(1)
        pointer = box.store.root / "models" / MODEL / ("B.json" if broken == "other slot" else "A.json")
        assert box.store.active(MODEL) == "A"
        pointer.write_bytes(content)
        updater = box.updater()
        updater.assign(fleet.assignments[2], 1)
        state = await rested(box, updater, lambda state: state.revision == 1)
        assert (state.phase, box.version(), box.serving.answers) == ("IDLE", 2, {MODEL: 2})

    asyncio.run(run())


@pytest.mark.parametrize("content", [b"", b"{torn", b"\xff"])
def test_a_damaged_way_back_fails_and_the_old_model_still_answers(content: bytes, tmp_path: Path, fleet: Fleet) -> None:
    async def run() -> None:
        box = TestBox(tmp_path / "box", fleet)
        box.install(1)
        (box.store.root / "models" / MODEL / "A.json").write_bytes(content)
        box.serving.broken = {2}
        updater = box.updater()
        updater.assign(fleet.assignments[2], 1)
        state = await rested(box, updater, lambda state: state.revision == 1)
        assert (state.phase, box.serving.answers) == ("FAILED", {MODEL: 1})
        assert state.error
        assert state.hint

    asyncio.run(run())


@pytest.mark.parametrize("error", [StoreError("slot A is damaged"), OSError("input/output error"), ValueError("torn")])
def test_tidying_that_fails_costs_only_room(error: Exception, tmp_path: Path, fleet: Fleet) -> None:
    async def run() -> None:
        async def tidy() -> None:
            raise error

        box = TestBox(tmp_path / "box", fleet)
        box.install(1)
        updater = Updater(MODEL, box.box, box.journal, tidy)
        updater.assign(fleet.assignments[2], 1)
        state = await rested(box, updater, lambda state: state.revision == 1)
        assert (state.phase, state.error, box.version(), box.serving.answers) == ("IDLE", "", 2, {MODEL: 2})

    asyncio.run(run())


@pytest.mark.parametrize("phase", ["CHECK", "STAGE", "TRIAL", "SWITCH"])
def test_an_unforeseen_trouble_with_a_file_fails_the_update_and_the_old_model_answers(
    phase: str, tmp_path: Path, fleet: Fleet
) -> None:
    def tell(event: device.Event) -> None:
        if event.phase == phase:
            folder = box.store.root
            (folder / "blobs").rename(folder / "lost")
            (folder / "blobs").write_bytes(b"a file where a folder was")

    async def run() -> None:
        box.install(1)
        updater = box.updater()
        updater.assign(fleet.assignments[2], 1)
        state = await rested(box, updater, lambda state: state.phase == "FAILED")
        assert box.serving.answers == {MODEL: 1}
        assert state.error

    box = TestBox(tmp_path / "box", fleet, tell=tell)
    box.serving.broken = {2}
    asyncio.run(run())


def test_a_version_that_cannot_be_loaded_is_taken_back(tmp_path: Path, fleet: Fleet) -> None:
    async def run() -> None:
        box = TestBox(tmp_path / "box", fleet)
        box.install(1)
        box.serving.broken = {2}
        state = await following(box, 2)
        assert (state.phase, box.version(), box.serving.answers) == ("FAILED", 1, {MODEL: 1})
        assert box.phases[-3:] == ["SWITCH", "ROLLBACK", "FAILED"]

    asyncio.run(run())
