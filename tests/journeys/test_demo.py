"""The main job: a trained graph is converted, signed, shipped, answers, learns, and comes back as the next release."""

import pytest

from tests.support.broker import mosquitto_program
from tests.support.stand import run_verb

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
