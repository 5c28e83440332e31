"""The main job: a trained graph is converted, signed, shipped, answers, learns, and comes back as the next release."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ota.demo import broker
from ota.demo.processes import Processes
from tests.support.broker import mosquitto_program
from tests.support.stand import run_verb, until

pytestmark = pytest.mark.journey


@pytest.mark.timeout(300)
def test_the_demo_goes_round_the_whole_loop() -> None:
    mosquitto_program()
    result = run_verb("demo", "--once", timeout_s=280)
    assert result["broker"] == "mosquitto"
    assert {(row["id"], row["version"], row["phase"]) for row in result["devices"]} == {
        (box, 3, "IDLE") for box in ("box1", "box2", "box3")
    }
    assert result["accuracy_float"] > 0.85
    assert result["accuracy_int8"] > result["accuracy_float"] - 0.02
    assert result["accuracy_federated"] > result["accuracy_int8"]
    assert 0 < result["size_int8_bytes"] < result["size_float_bytes"] / 2
    assert min(result["latency_float_ms"], result["latency_int8_ms"], result["wire_bytes"]) > 0


@pytest.mark.timeout(120)
def test_a_demo_whose_step_fails_says_which_and_fails(tmp_path: Path) -> None:
    """Files may have 130 KiB: enough for the digits, too little for the network that the first step writes."""
    command = f"ulimit -f 130; exec {sys.executable} -m edgert demo --once --json --folder {tmp_path / 'new'}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "edgert models: " in json.loads(done.stdout)["error"]
    assert "untrained.onnx" in done.stderr


@pytest.mark.timeout(120)
def test_a_box_enrols_through_the_embedded_broker_which_is_said_to_check_no_certificates(tmp_path: Path) -> None:
    pytest.importorskip("amqtt")
    home, port, said = tmp_path / "fleet", broker.free_port(), []
    user = ("--broker-user", "root") if os.geteuid() == 0 else ()
    run_verb("ota", "init", home, "--host", "127.0.0.1", "--port", port, *user)
    with Processes(tmp_path / "logs") as processes:
        assert broker.start(processes, home, port, said.append, embedded=True) == "amqtt"
        processes.edgert("server", "ota", "serve", home)
        run_verb("ota", "claims", "new", home, "--device", "box1", "-o", tmp_path / "kit")
        box = ("--kit", tmp_path / "kit", "--state", tmp_path / "box1", "--serve-port", "0")
        processes.edgert("box1", "agent", "run", *box, "--profile", "generic-cpu")

        def reported() -> bool:
            processes.check()
            return any(row["online"] and row["agent"] for row in run_verb("ota", "devices", home)["devices"])

        until("the state of the box", reported)
    assert [line for line in said if "does NOT check client certificates" in line]
