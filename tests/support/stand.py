"""A whole fleet on this machine for tests: broker, server and agents are the real programs, ended by their ids."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ota.fleet import Fleet
from ota.operations.actor import local_operator
from ota.operations.enrol import claims_new, devices_list
from tests.support.broker import Mosquitto

__all__ = ["Stand", "VerbError", "run_verb", "until"]


class VerbError(Exception):
    """A verb failed.

    Args:
        code: exit code; lines: of standard error.
    """

    def __init__(self, code: int, stderr: str) -> None:
        super().__init__(f"exit {code}: {stderr}")
        self.code = code
        self.stderr = stderr


def run_verb(*arguments: object, timeout_s: float = 120) -> dict[str, Any]:
    """The ``--json`` result of a verb.

    Raises:
        VerbError: it did not exit with 0.
    """
    command = [sys.executable, "-m", "edgert", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise VerbError(done.returncode, done.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def until(what: str, ready: Callable[[], Any], timeout_s: float = 40, pause_s: float = 0.02) -> Any:
    """Ask `ready` again and again until it gives something true; fail with `what` after the deadline."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        result = ready()
        if result:
            return result
        time.sleep(pause_s)
    raise AssertionError(f"waited {timeout_s} s for {what}")


class Stand:
    """Folder with a fleet (``home``), its broker, and devices under ``devices/<id>``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "fleet"
        self.broker: Mosquitto | None = None
        self._fleet: Fleet | None = None
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name in reversed(list(self._children)):
            self.stop(name)
        if self.broker is not None:
            self.broker.stop()
        if self._fleet is not None:
            self._fleet.close()

    @property
    def fleet(self) -> Fleet:
        """The fleet's home, opened in this process: what the verbs of the operator work with."""
        if self._fleet is None:
            self._fleet = Fleet.open(self.home)
        return self._fleet

    def up(self, port: int) -> None:
        """Make the fleet, start its broker and its server."""
        user = ("--broker-user", "root") if os.geteuid() == 0 else ()
        run_verb("ota", "init", self.home, "--host", "127.0.0.1", "--port", port, *user)
        self.broker = Mosquitto(self.home / "broker", self.home / "broker" / "mosquitto.conf", port=port)
        self.broker.start()
        self.serve()

    def serve(self) -> None:
        """Start the server."""
        self.start("server", "ota", "serve", self.home)

    def start(self, name: str, *arguments: object) -> None:
        """Start a verb that stays; its output goes to ``<name>.log``."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                [sys.executable, "-m", "edgert", *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        """End a child in order (or not, with SIGKILL) and give its exit code."""
        child = self._children.pop(name)
        child.send_signal(number)
        try:
            return child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()

    def runs(self, name: str) -> bool:
        """Whether a child was started and has not ended."""
        return name in self._children and self._children[name].poll() is None

    def pid(self, name: str) -> int:
        """Process id of a child."""
        return self._children[name].pid

    def log(self, name: str) -> str:
        """What a child wrote so far."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def state(self, device: str) -> Path:
        """State folder of a device."""
        return self.folder / "devices" / device

    def kit(self, device: str) -> Path:
        """An enrolment kit for a device, made when it is not there yet."""
        kit = self.folder / "kits" / device
        if not kit.exists():
            claims_new(self.fleet, local_operator(), device, kit)
        return kit

    def agent(self, device: str, *options: object) -> None:
        """Start the agent of a device."""
        common = ("--kit", self.kit(device), "--state", self.state(device), "--profile", "x86-64", "--serve-port", "0")
        self.start(device, "agent", "run", *common, *options)

    def device(self, device: str) -> dict[str, Any]:
        """What the server knows about a device; empty before it was seen."""
        rows = devices_list(self.fleet, local_operator())
        return next((row for row in rows if row["device"] == device), {})

    def model(self, device: str, model: str) -> dict[str, Any]:
        """What a device reported about a model; empty before it did."""
        models: dict[str, dict[str, Any]] = self.device(device).get("models", {})
        return models.get(model, {})
