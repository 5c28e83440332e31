"""One box, as a real process against a real Mosquitto and the real server: it answers, whatever happens around it."""

import json
import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agents import status
from edgert.wire.twin import ModelState
from ota.operations.actor import local_operator
from ota.operations.release import publish
from ota.operations.spread import rollout_start, rollout_status
from tests.support.broker import free_port
from tests.support.models import bundle_file
from tests.support.stand import Stand, VerbError, run_verb, until

pytestmark = [pytest.mark.journey, pytest.mark.timeout(170), pytest.mark.xdist_group("agent")]

_BOX, _MODEL = "box1", "tiny"


class _Yard:
    """A fleet with one box, whose inference port stays the same over restarts."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.port = free_port()
        self._bundles = 0
        self._rollout = 0

    def start(self) -> None:
        stand = self.stand
        options = ("--profile", "generic-cpu", "--serve-port", self.port)
        stand.start(_BOX, "agent", "run", "--kit", stand.kit(_BOX), "--state", stand.state(_BOX), *options)

    def answers(self) -> int:
        """The version that answers an inference request; 0 when none does."""
        body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.5] * 4}]}
        url = f"http://127.0.0.1:{self.port}/v2/models/{_MODEL}/infer"
        try:
            with urllib.request.urlopen(url, data=json.dumps(body).encode(), timeout=5) as answer:
                return int(json.load(answer)["model_version"])
        except (urllib.error.URLError, OSError):
            return 0

    def release(self, *, shift: float = 0.0) -> int:
        """Publish a new bundle and roll it out; a `shift` of the golden outputs makes the trial fail."""
        self._bundles += 1
        path = self.stand.folder / f"{self._bundles}.edgert"
        bundle_file(path, tolerance=self._bundles * 1e-4, shift=shift)
        version = int(publish(self.stand.fleet, local_operator(), [path], without_source=True)["version"])
        self._rollout = rollout_start(self.stand.fleet, local_operator(), _MODEL, version=version)["rollout"]
        return version

    def rollout(self) -> str:
        """Where the last rollout stands."""
        return str(rollout_status(self.stand.fleet, local_operator(), self._rollout)["status"])

    def status(self) -> ModelState:
        """What the box says of itself, read from its folder."""
        return status.read(self.stand.state(_BOX)).models[_MODEL]

    @contextmanager
    def no_broker(self) -> Iterator[None]:
        """Without a broker for as long as the block takes."""
        assert self.stand.broker is not None
        self.stand.broker.stop()
        try:
            yield
        finally:
            self.stand.broker.start()


@pytest.fixture(scope="module")
def fenced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Yard]:
    with Stand(tmp_path_factory.mktemp("agent")) as stand:
        stand.up(free_port())
        yard = _Yard(stand)
        yard.start()
        until("the box to enrol", lambda: stand.device(_BOX))
        yard.release()
        yield yard


@pytest.fixture
def yard(fenced: _Yard) -> _Yard:
    """The box runs, answers, and nothing is under way, whatever the test before left."""
    if not fenced.stand.runs(_BOX):
        fenced.start()
    until("the last rollout to end", lambda: fenced.rollout() in ("DONE", "HALTED"))
    until("the box to answer", fenced.answers)
    return fenced


def test_a_bundle_that_fails_its_trial_never_answers(yard: _Yard) -> None:
    before = yard.answers()
    version = yard.release(shift=1.0)
    until("the trial to fail", lambda: f"the trial of tiny {version} failed (golden)" in yard.stand.log(_BOX))
    until("the server to know", lambda: yard.rollout() == "HALTED" and yard.status().phase in ("IDLE", "FAILED"))
    assert yard.answers() == yard.status().version == before


def test_without_a_broker_the_box_answers_and_catches_up_later(yard: _Yard) -> None:
    stand, before = yard.stand, yard.answers()
    assert stand.stop(_BOX) == 0
    assert not yard.answers()
    with yard.no_broker():
        yard.start()
        until("the box to answer without a broker", lambda: yard.answers() == before)
    version = yard.release()
    until("the release", lambda: yard.answers() == version)


def test_the_operator_takes_a_version_back_without_network_and_the_box_keeps_to_it(yard: _Yard) -> None:
    stand, before = yard.stand, yard.answers()
    version = yard.release()
    until("the release", lambda: yard.answers() == version and yard.rollout() == "DONE")
    with yard.no_broker():
        back = run_verb("agent", "rollback", "--state", stand.state(_BOX), "--model", _MODEL)
        assert (back["version"], yard.answers()) == (before, before)
        assert stand.stop(_BOX, signal.SIGKILL) == -signal.SIGKILL
        yard.start()
        until("the box to answer after the restart", lambda: yard.answers() == before)
    until("the server to know", lambda: stand.model(_BOX, _MODEL).get("version") == before)
    state = yard.status()
    assert (state.version, state.phase) == (before, "FAILED")
    assert f"taken back from version {version} to {before}" in state.error


@pytest.mark.parametrize("damaged", ["the pointer", "the slot it names"])
def test_a_box_answers_after_a_restart_with_a_damaged_store(yard: _Yard, damaged: str) -> None:
    folder = yard.stand.state(_BOX) / "store" / "models" / _MODEL
    before = yard.release()
    until("a second version", lambda: yard.answers() == before and yard.rollout() == "DONE")
    assert yard.stand.stop(_BOX) == 0
    pointer = folder / "active"
    broken = pointer if damaged == "the pointer" else folder / f"{pointer.read_text()}.json"
    broken.write_bytes(b"{torn")
    yard.start()
    until("the box to answer", yard.answers)
    assert (yard.answers() == before) == (broken == pointer), "without its slot, the version before answers"
    version = yard.release()
    until("the next release", lambda: yard.answers() == version and yard.rollout() == "DONE")


def test_a_second_agent_on_the_same_folder_is_refused(yard: _Yard) -> None:
    with pytest.raises(VerbError) as caught:
        run_verb("agent", "run", "--state", yard.stand.state(_BOX), "--serve-port", 0)
    assert caught.value.code == 1
    assert "an agent is running" in caught.value.stderr


def test_a_busy_port_is_said_and_nothing_is_left(yard: _Yard, tmp_path: Path) -> None:
    stand = yard.stand
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(VerbError) as caught:
            run_verb("agent", "run", "--kit", stand.kit("box2"), "--state", tmp_path / "s", "--serve-port", port)
    assert caught.value.code == 1
    assert [line.split(":")[0] for line in caught.value.stderr.splitlines() if line.startswith(("error", "hint"))] == [
        "error",
        "hint",
    ]


def test_a_model_that_dies_in_the_inference_process_comes_back(yard: _Yard) -> None:
    pid = yard.stand.pid(_BOX)
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    for child in children:
        os.kill(child, signal.SIGKILL)
    until("the inference process to come back", yard.answers)


def test_the_agent_stops_in_order(yard: _Yard) -> None:
    assert yard.stand.stop(_BOX) == 0
    until("the server to see it go", lambda: yard.stand.device(_BOX).get("online") is False)
