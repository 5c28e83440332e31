"""A real Mosquitto for tests."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

__all__ = ["Mosquitto", "free_port", "mosquitto_program"]

_READY_S = 10.0


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def mosquitto_program() -> str:
    """Path of the broker; skips the test when it is not installed."""
    found = shutil.which(
        "mosquitto", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    )
    if found is None:
        pytest.skip("Mosquitto is not installed: apt-get install mosquitto")
    return found


class Mosquitto:
    """A broker process of its own on the loopback interface, started by ``with`` and ended afterwards.

    Args:
        folder: for its configuration and its log.
        config: its configuration file; ``@PORT@`` in it is replaced by the port, if it names no other. None: anybody
            may do anything, without TLS.
        port: where it listens; None takes a free one.
    """

    def __init__(self, folder: Path, config: Path | None = None, *, port: int | None = None) -> None:
        self._program = mosquitto_program()
        self.port = port or free_port()
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        text = _OPEN_CONFIG if config is None else config.read_text(encoding="utf-8")
        self.config = folder / f"mosquitto-{self.port}.conf"
        self.config.write_text(text.replace("@PORT@", str(self.port)), encoding="utf-8")
        self._log = folder / f"mosquitto-{self.port}.log"

    @property
    def pid(self) -> int:
        """Process id of the running broker."""
        assert self._process is not None, "the broker is not running"
        return self._process.pid

    @property
    def log(self) -> str:
        """What the broker wrote so far."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        assert self._process is None, "the broker is running already"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-v", "-c", str(self.config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _READY_S
        while not _accepts(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the broker did not start:\n{self.log[-2000:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it in order; does nothing when it is not running."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it like a power cut."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it and start it on the same port."""
        self.stop()
        self.start()

    def reload(self) -> None:
        """Let it read its ACL and certificates lists again; returns after it said so."""
        seen = self.log.count("Reloading config")
        os.kill(self.pid, signal.SIGHUP)
        deadline = time.monotonic() + _READY_S
        while self.log.count("Reloading config") == seen:
            assert time.monotonic() < deadline, "the broker did not reload"
            time.sleep(0.01)

    def _end(self, kind: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(kind)
        try:
            process.wait(_READY_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_READY_S)


_OPEN_CONFIG = """\
listener @PORT@ 127.0.0.1
allow_anonymous true
set_tcp_nodelay true
persistence false
log_dest stderr
"""


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True
