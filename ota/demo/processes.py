"""The child processes of the demo: verbs that end, daemons that stay, and their logs."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgert.errors import CheckError, FaultError

__all__ = ["Processes"]

_VERB_TIMEOUT_S = 240
_STOP_TIMEOUT_S = 10


class Processes:
    """Runs verbs of the command line and keeps daemons; ends every one it started, last first.

    Args:
        logs: folder for one log file per daemon.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._files = ExitStack()
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in reversed(self._daemons.values()):
            process.terminate()
        for process in reversed(self._daemons.values()):
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._files.close()

    def verb(self, *arguments: str | Path) -> dict[str, Any]:
        """Run ``edgert ARGUMENTS --json`` to its end and give its result.

        Raises:
            CheckError: it failed; carries its own error and hint.
        """
        self.check()
        command = [sys.executable, "-P", "-m", "edgert", *map(str, arguments), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_VERB_TIMEOUT_S, check=False)
        try:
            result: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            result = {"error": (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]}
        if done.returncode or "error" in result:
            raise CheckError(
                f"edgert {arguments[0]}: {result.get('error', 'failed')}", hint=str(result.get("hint", ""))
            )
        return result

    def daemon(self, name: str, *command: str | Path) -> None:
        """Start a program that stays; its output goes to ``<name>.log``."""
        log = self._files.enter_context((self._logs / f"{name}.log").open("wb"))
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        self._daemons[name] = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )

    def edgert(self, name: str, *arguments: str | Path) -> None:
        """Start ``edgert ARGUMENTS`` as a daemon."""
        self.daemon(name, sys.executable, "-P", "-m", "edgert", *arguments)

    def check(self) -> None:
        """Notice a daemon that ended.

        Raises:
            FaultError: names it and shows the last line of its log.
        """
        for name, process in self._daemons.items():
            if process.poll() is not None:
                log = self._logs / f"{name}.log"
                lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise FaultError(
                    f"{name} ended with code {process.returncode}: {lines[-1][:200] if lines else 'it said nothing'}",
                    hint=f"its log is {log}",
                )
