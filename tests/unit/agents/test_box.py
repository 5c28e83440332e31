"""The small parts of an agent: settings, memory, examples, plan, offers, control, status, what it imports."""

import asyncio
import json
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from agents import config, control, examples, rollback, status
from agents.control import Control, Request
from agents.offers import Offers
from agents.state import Memory, StateFolder
from agents.update import journal, plan
from agents.update.machine import State
from edgert.bundle import parse_image
from edgert.clock import ManualClock, SystemClock
from edgert.errors import ConfigError, FaultError, RefusedError, SamplesError, StoreError, UsageError
from edgert.manifest import CompiledFor
from edgert.samples import pack_arrays
from edgert.store import Store
from edgert.values import digest
from edgert.wire.messages.federated import Invite
from edgert.wire.twin import Desired
from tests.support.box import MODEL, Fleet, TestBox
from tests.support.signed import START

# What an agent imports


def test_the_process_that_must_stay_alive_is_light() -> None:
    words = (
        "import sys, agents.supervisor, agents.cli, edgert.wire.transports.mqtt\n"
        "heavy = {'onnxruntime', 'fastapi', 'starlette', 'uvicorn', 'onnx', 'sqlalchemy', 'tflite_runtime', "
        "'ai_edge_litert', 'converters', 'ota'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


# Settings


def test_the_command_line_goes_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('state = "/var/lib/edgert"\nserve_port = 9000\n[examples]\ndigits-cnn = "/data/digits"\n')
    read = config.load(path, {"serve_port": 9001, "profile": None})
    assert (read.state, read.serve_port) == (Path("/var/lib/edgert"), 9001)
    assert read.serve_host == "127.0.0.1"
    assert read.examples == {"digits-cnn": Path("/data/digits")}


@pytest.mark.parametrize("text", ['stat = "x"', "serve_port = 70000", 'log_level = "LOUD"', "= 1"])
def test_a_wrong_key_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(f'state = "s"\n{text}\n' if "state" not in text else text)
    with pytest.raises(ConfigError):
        config.load(path, {})


def test_a_missing_state_folder_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="state"):
        config.load(None, {})


# Memory


def test_memory_outlives_the_process_and_damage_costs_only_memory(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    assert state.memory() == Memory()
    desired = Desired(device="box1", revision=3, issued=START, expires=START + timedelta(days=1), models=())
    state.remember(Memory().accepted(desired))
    assert StateFolder(tmp_path / "state").memory().revision == 3
    (tmp_path / "state" / "state.json").write_bytes(b"{torn")
    assert state.memory() == Memory()


def test_proven_time_never_goes_back() -> None:
    memory = Memory(not_before=START)
    assert memory.proven(START - timedelta(days=9)) == START
    assert memory.proven(START + timedelta(days=9)) == START + timedelta(days=9)
    old = Desired(device="b", revision=1, issued=START - timedelta(days=1), expires=START, models=())
    assert memory.accepted(old).not_before == START


def test_a_wrong_clock_reading_is_not_kept(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    far = START + timedelta(days=9999)
    state.memory().proven(far)
    assert state.memory().proven(START) == START


def test_one_agent_per_folder(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    with state.locked(time.sleep):
        assert state.held()
        with pytest.raises(FaultError, match="is running"), StateFolder(tmp_path / "state").locked(time.sleep):
            pass
    assert not state.held()


def test_keys_are_closed_to_others(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    assert state.identity.stat().st_mode & 0o077 == 0


# Examples


def save(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pack_arrays(arrays))


def test_examples_are_counted_from_the_headers_and_read_in_order(tmp_path: Path) -> None:
    save(tmp_path / "b.npz", x=np.full((2, 3), 2.0), labels=np.array([2, 2]))
    save(tmp_path / "a.npz", x=np.full((1, 3), 1.0), labels=np.array([1]))
    assert examples.count(tmp_path) == 3
    read = examples.read(tmp_path)
    assert read.labels is not None
    assert read.labels.tolist() == [1, 2, 2]
    assert read.inputs["x"][:, 0].tolist() == [1.0, 2.0, 2.0]


def test_a_folder_without_examples_has_none(tmp_path: Path) -> None:
    assert examples.count(tmp_path) == examples.count(tmp_path / "nowhere") == 0
    with pytest.raises(SamplesError, match="no examples"):
        examples.read(tmp_path)


def test_files_that_do_not_fit_together_or_lack_labels_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", x=np.zeros((1, 3)), labels=np.array([1]))
    save(tmp_path / "b.npz", x=np.zeros((1, 4)), labels=np.array([1]))
    with pytest.raises(SamplesError, match="different shapes"):
        examples.read(tmp_path)
    save(tmp_path / "b.npz", y=np.zeros((1, 3)), labels=np.array([1]))
    with pytest.raises(SamplesError, match="different inputs"):
        examples.read(tmp_path)
    save(tmp_path / "b.npz", x=np.zeros((1, 3)))
    with pytest.raises(SamplesError, match="no labels"):
        examples.read(tmp_path)
    with pytest.raises(SamplesError, match="with labels"):
        examples.count(tmp_path)
    (tmp_path / "b.npz").write_bytes(b"rubbish")
    with pytest.raises(SamplesError):
        examples.count(tmp_path)


# Plan


def test_a_bundle_must_fit_the_box(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    assignment, manifest = fleet.assignments[1], fleet.bundle(1).manifest
    box = plan.Fit(("generic-cpu",), ("rk3588",), 1 << 30)
    plan.check(assignment, manifest, 1000, box)
    with pytest.raises(RefusedError, match="is of model tiny"):
        plan.check(assignment.model_copy(update={"model": "other"}), manifest, 0, box)
    with pytest.raises(StoreError, match="needs 2000000000 bytes"):
        plan.check(assignment, manifest, 2_000_000_000, box)
    with pytest.raises(RefusedError, match="is larger than the 10 bytes"):
        plan.check(assignment, manifest, 0, plan.Fit(("generic-cpu",), (), 1 << 30, 10))
    for soc, fits in (("rk3588", True), ("ascend310b", False)):
        compiled = tuple(
            artifact.model_copy(update={"compiled_for": CompiledFor(soc=soc, sdk="1")})
            for artifact in manifest.artifacts
        )
        vendor = manifest.model_copy(update={"artifacts": compiled})
        if fits:
            plan.check(assignment, vendor, 0, box)
        else:
            with pytest.raises(RefusedError, match="compiled for ascend310b"):
                plan.check(assignment, vendor, 0, box)


def test_only_what_is_not_here_is_fetched(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    image = parse_image(fleet.store.read(fleet.assignments[1].digest))
    here = [image.config.digest]
    assert set(plan.missing(image, here)) == set(image.blobs()) - set(here)


# Offers


def test_offers_give_away_nothing_else(tmp_path: Path) -> None:
    offers = Offers(tmp_path)
    secret = offers.store.add(b"the weights of the fleet")
    invite = Invite(job="j", round=1, weights=secret, weights_bytes=1, deadline_s=1)
    offer = offers.keep(invite, b"an update", examples=3, loss=0.5, expires=START)
    assert offers.size(offer.update) == 9
    assert offers.read(offer.update, 3, 6) == b"update"
    for name in (secret, "metadata/root.json", "../../etc/passwd", digest(b"?")):
        assert offers.size(name) is None
        with pytest.raises(StoreError):
            offers.read(name, 0, 1)


def test_offers_outlive_the_process_and_end_with_their_job(tmp_path: Path) -> None:
    invite = Invite(job="j", round=2, weights=digest(b"w"), weights_bytes=1, deadline_s=1)
    offer = Offers(tmp_path).keep(invite, b"an update", examples=3, loss=0.5, expires=START)
    (tmp_path / "torn.json").write_bytes(b"{")
    again = Offers(tmp_path)
    assert again.find(invite) == offer
    assert again.find(invite.model_copy(update={"weights": digest(b"v")})) is None
    again.drop("j", up_to=1)
    assert again.all() == [offer]
    again.expire(START)
    assert again.all() == Offers(tmp_path).all() == []


# Going back, and what the box says of itself


def installed(folder: Path, versions: tuple[int, ...]) -> tuple[StateFolder, Store]:
    box = TestBox(folder / "box", Fleet(folder / "fleet"))
    for version in versions:
        box.install(version)
    return StateFolder(folder / "box"), box.store


def test_a_box_that_does_not_run_is_taken_back_in_place(tmp_path: Path) -> None:
    state, store = installed(tmp_path, (1, 2))
    rollback.take_back(state.root, MODEL, pause=time.sleep)
    active = store.active_slot(MODEL)
    assert active is not None
    assert active.version == 1
    found = status.read(state.root)
    assert (found.models[MODEL].phase, found.models[MODEL].version, found.running) == ("FAILED", 1, False)
    assert "taken back from version 2 to 1" in found.models[MODEL].error


def test_there_is_nothing_to_go_back_to_before_the_second_version(tmp_path: Path) -> None:
    state, _ = installed(tmp_path, (1,))
    with pytest.raises(RefusedError, match="other slot of tiny is empty"):
        rollback.take_back(state.root, MODEL, pause=time.sleep)
    with pytest.raises(RefusedError, match="no model other"):
        rollback.take_back(state.root, "other", pause=time.sleep)


def test_an_interrupted_update_is_finished_before_anything_is_taken_back(tmp_path: Path) -> None:
    state, store = installed(tmp_path, (1, 2))
    journal.write(state.journal / f"{MODEL}.json", State(model=MODEL, phase="SWITCH"))
    with pytest.raises(FaultError, match="interrupted in SWITCH"):
        rollback.take_back(state.root, MODEL, pause=time.sleep)
    assert store.active(MODEL) == "B"


def test_a_folder_of_something_else_has_no_status(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the state folder"):
        status.read(tmp_path)
    with pytest.raises(UsageError, match="not the state folder"):
        rollback.take_back(tmp_path, MODEL, pause=time.sleep)


class Withdrawals:
    def __init__(self, answer: State | RefusedError) -> None:
        self.answer = answer

    def withdraw(self, model: str, revision: int) -> "asyncio.Future[State]":
        done: asyncio.Future[State] = asyncio.get_running_loop().create_future()
        if isinstance(self.answer, RefusedError):
            done.set_exception(self.answer)
        else:
            done.set_result(self.answer)
        return done


@pytest.mark.parametrize("refusal", [None, RefusedError("there is no other", hint="wait")])
def test_a_running_agent_is_asked_and_answers(refusal: RefusedError | None, tmp_path: Path) -> None:
    async def play() -> None:
        withdrawals = Withdrawals(refusal or State(model=MODEL, phase="FAILED"))
        agent = asyncio.ensure_future(Control(tmp_path, withdrawals, lambda: 1).run())
        await asyncio.sleep(0)
        try:
            await asyncio.to_thread(control.ask, tmp_path, Request(model=MODEL), SystemClock(), time.sleep, 10)
        finally:
            agent.cancel()
            await asyncio.gather(agent, return_exceptions=True)

    if refusal is None:
        asyncio.run(play())
    else:
        with pytest.raises(RefusedError, match="there is no other"):
            asyncio.run(play())
    assert list(tmp_path.iterdir()) == []


def test_an_agent_that_does_not_answer_is_not_waited_for_and_the_wish_is_taken_back(tmp_path: Path) -> None:
    clock = ManualClock()
    with pytest.raises(FaultError, match="did not take tiny back"):
        control.ask(tmp_path, Request(model=MODEL), clock, clock.advance, 1)
    assert list(tmp_path.iterdir()) == []


# The command line


def verb(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "edgert", "agent", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_status_and_rollback_speak_json_and_plain(tmp_path: Path) -> None:
    state, _ = installed(tmp_path, (1, 2))
    code, out, _ = verb("rollback", "--state", state.root, "--model", MODEL, "--json")
    assert (code, json.loads(out)) == (0, {"model": MODEL, "version": 1, "slot": "A"})
    code, out, _ = verb("status", "--state", state.root)
    assert code == 0
    assert "tiny: version 1 in slot A, FAILED" in out


def test_what_cannot_be_done_is_one_error_and_one_hint(tmp_path: Path) -> None:
    for code, arguments in {
        2: ("run", "--state", tmp_path / "s"),
        1: ("enroll", "--state", tmp_path / "s", "--kit", _dead_kit(tmp_path)),
    }.items():
        got, _, err = verb(*arguments)
        lines = [line for line in err.splitlines() if line.startswith(("error:", "hint:"))]
        assert (got, len(lines)) == (code, 2), err
    assert not (tmp_path / "s" / "identity" / "certificate.pem").exists()


def _dead_kit(folder: Path) -> Path:
    from edgert.identity import Authority
    from edgert.wire.fleet import Kit
    from tests.support.broker import free_port

    kit = folder / "kit"
    if not kit.exists():
        kit.mkdir()
        authority = Authority.create("fleet", SystemClock().now())
        key, certificate = authority.issue_client("claim-1", SystemClock().now(), 1)
        words = Kit(host="127.0.0.1", port=free_port(), claim="claim-1", device="box1")
        files = {"kit.json": words.encode(), "ca.pem": authority.certificate, "claim.pem": certificate}
        for name, data in (files | {"claim.key": key, "root.json": b"{}"}).items():
            (kit / name).write_bytes(data)
    return kit
