"""A box whose disk is full or read-only starts and answers from its slot, without network, as a real process."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.state import StateFolder
from edgert.bundle import Bundle
from edgert.store import Slot, Store
from edgert.wire.fleet import Kit
from tests.support.broker import free_port
from tests.support.certificates import Certificates
from tests.support.disk import small_disk
from tests.support.models import bundle_file, mlp_answer
from tests.support.oip import Client
from tests.support.signed import SignedFleet

pytestmark = [pytest.mark.journey, pytest.mark.timeout(120), pytest.mark.xdist_group("disk")]

DEVICE, MODEL = "box1", "tiny"
X = np.array([[0.5, -1.0, 2.0, 0.25]], np.float32)


def enrolled(root: Path, elsewhere: Path) -> None:
    """The state folder of a box that ran before: an identity and a model in slot A; its broker is away."""
    state = StateFolder(root)
    certificates = Certificates.make(elsewhere)
    broker = certificates.broker(DEVICE, free_port())
    assert broker.certificate is not None
    assert broker.key is not None
    kit = Kit(host="127.0.0.1", port=broker.port, claim="claim-1", device=DEVICE)
    files = {
        "ca.pem": (elsewhere / "ca.pem").read_bytes(), "certificate.pem": broker.certificate.read_bytes(),
        "key.pem": broker.key.read_bytes(), "device.json": kit.encode(), "root.json": SignedFleet().pinned,
    }  # fmt: skip
    for name, data in files.items():
        (state.identity / name).write_bytes(data)
    (root / "lock").touch(mode=0o600)
    store, bundle = Store(state.store), Bundle.open(bundle_file(elsewhere / "tiny.edgert"))
    store.ingest(bundle)
    store.switch(MODEL, store.stage(MODEL, Slot(digest=bundle.digest, version=1)))


@contextmanager
def agent(state: Path) -> Iterator[str]:
    """A running agent; gives the endpoint it says it answers on."""
    command = [sys.executable, "-m", "edgert", "agent", "run", "--state", str(state), "--profile", "generic-cpu"]
    process = subprocess.Popen(
        [*command, "--serve-port", "0", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    said = ""
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate(timeout=20)[1]
        yield json.loads(line)["endpoint"]
        process.terminate()
        said = process.communicate(timeout=30)[1]
    finally:
        process.kill()
        process.communicate(timeout=20)
    assert process.returncode == 0, said
    assert "Traceback" not in said, said


def status_of(state: Path) -> Any:
    command = [sys.executable, "-m", "edgert", "agent", "status", "--state", str(state), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_box_answers_from_its_slot_when_its_disk_is(trouble: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        state = disk.root / "state"
        enrolled(state, tmp_path / "elsewhere")
        disk.fill() if trouble == "full" else disk.protect()
        with agent(state) as endpoint, Client(endpoint) as client:
            outputs = client.infer(MODEL, {"x": X})
            np.testing.assert_allclose(outputs["scores"], mlp_answer(X), rtol=1e-5)
            now = status_of(state)
            assert (now["device"], now["running"], now["models"][MODEL]["version"]) == (DEVICE, True, 1)
