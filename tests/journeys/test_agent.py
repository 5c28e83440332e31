"""One box, as a real process against a real Mosquitto and the real server: it answers, whatever happens around it."""

import json
import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgert.wire.twin import ModelState
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

    def release(self, version: int, *, shift: float = 0.0) -> None:
        """Publish and roll out; a `shift` of the golden outputs makes the trial fail."""
        path = bundle_file(self.stand.folder / f"{version}.edgert", tolerance=version * 1e-4, shift=shift)
        run_verb("ota", "publish", self.stand.home, path, "--no-source")
        run_verb("ota", "rollout", self.stand.home, "--model", _MODEL)

    def status(self) -> ModelState:
        """What the box says of itself, read from its folder."""
        models = run_verb("agent", "status", "--state", self.stand.state(_BOX))["models"]
        return ModelState.model_validate(models[_MODEL])


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Yard]:
    with Stand(tmp_path_factory.mktemp("agent")) as stand:
        stand.up(free_port())
        yard = _Yard(stand)
        yard.start()
        until("the box to enrol", lambda: stand.device(_BOX))
        yard.release(1)
        until("the first release to answer", lambda: yard.answers() == 1)
        yield yard


def test_a_bundle_that_fails_its_trial_never_answers(yard: _Yard) -> None:
    yard.release(2, shift=1.0)
    until("the trial to fail", lambda: "the trial of tiny 2 failed (golden)" in yard.stand.log(_BOX))
    until(
        "the server to know", lambda: "ROLLBACK" in yard.stand.log(_BOX) and yard.status().phase in ("IDLE", "FAILED")
    )
    assert yard.answers() == yard.status().version == 1


def test_without_a_broker_the_box_answers_and_catches_up_later(yard: _Yard) -> None:
    stand = yard.stand
    assert stand.broker is not None
    assert stand.stop(_BOX) == 0
    assert not yard.answers()
    stand.broker.stop()
    yard.start()
    until("the box to answer without a broker", lambda: yard.answers() == 1)
    stand.broker.start()
    until("the box to come back", lambda: stand.device(_BOX).get("online"))
    yard.release(3)
    until("the release", lambda: yard.answers() == 3)


def test_the_operator_takes_a_version_back_without_network_and_the_box_keeps_to_it(yard: _Yard) -> None:
    stand = yard.stand
    assert stand.broker is not None
    until("the release before", lambda: yard.answers() == 3 and yard.status().phase == "IDLE")
    stand.broker.stop()
    back = run_verb("agent", "rollback", "--state", stand.state(_BOX), "--model", _MODEL)
    assert (back["version"], yard.answers()) == (1, 1)
    assert stand.stop(_BOX, signal.SIGKILL) == -signal.SIGKILL
    yard.start()
    until("the box to answer after the restart", lambda: yard.answers() == 1)
    stand.broker.start()
    until("the server to know", lambda: stand.model(_BOX, _MODEL).get("version") == 1)
    state = yard.status()
    assert (state.version, state.phase) == (1, "FAILED")
    assert "taken back from version 3 to 1" in state.error


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
    children = [int(word) for word in Path(f"/proc/{_pid(yard)}/task/{_pid(yard)}/children").read_text().split()]
    for child in children:
        os.kill(child, signal.SIGKILL)
    until("the inference process to come back", yard.answers)


def _pid(yard: _Yard) -> int:
    return yard.stand._children[_BOX].pid


def test_the_agent_stops_in_order(yard: _Yard) -> None:
    assert yard.stand.stop(_BOX) == 0
    until("the server to see it go", lambda: yard.stand.device(_BOX).get("online") is False)
