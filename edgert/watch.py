"""A child process under watch: its words, its time, its memory, and how it ended."""

import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from edgert import host
from edgert.errors import TrialError

__all__ = ["Ended", "converse", "private_stdout"]

_SAID_LIMIT_BYTES = 4 << 20
_COMPLAINED_LIMIT_BYTES = 4 << 10
_WATCH_S = 0.02


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended.

    Args:
        said: what it wrote to standard output.
        trouble: what went wrong, to be put after a subject ("crashed (SIGSEGV)"); empty when it left in good order.
        peak_rss_bytes: the most memory it was seen with; 0 when it had no limit.
    """

    said: bytes
    trouble: str
    peak_rss_bytes: int


def converse(
    arguments: Sequence[str],
    question: bytes,
    *,
    timeout_s: float,
    memory_bytes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run a program, with `question` on its standard input, until it ends or breaks a limit.

    It has a process group of its own, which is killed then: whatever the child started dies with it.

    Args:
        memory_bytes: of resident pages, looked at every 20 ms, because those are what a small box runs out of. A limit
            on address space or data would count what runtimes reserve and never touch: arenas, stacks, mapped weights.
        environment: of the child; None = that of this process.

    Raises:
        TrialError: this machine cannot start a process at all.
    """
    with tempfile.TemporaryFile() as stdin:
        stdin.write(question)
        stdin.seek(0)
        try:
            process = subprocess.Popen(
                list(arguments),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env=environment,
            )
        except OSError as e:
            raise TrialError(
                f"cannot start a child process: {e.strerror or e}", hint="make memory or processes free"
            ) from e
    with process:
        try:
            return _Watch(process, timeout_s, memory_bytes).until_the_end()
        finally:
            _kill(process)


def private_stdout() -> IO[str]:
    """In the child: standard output for answers only; what anything else prints from now on goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # nobody of the group is left


@dataclass(slots=True)
class _Watch:
    process: subprocess.Popen[bytes]
    timeout_s: float
    memory_bytes: int | None
    said: bytearray = field(default_factory=bytearray)
    complained: bytearray = field(default_factory=bytearray)
    peak_rss_bytes: int = 0

    def until_the_end(self) -> Ended:
        trouble = self._follow()
        if trouble:
            _kill(self.process)
        code = self.process.wait()
        if not trouble and code != 0:
            trouble = self._obituary(code)
        return Ended(bytes(self.said), trouble, self.peak_rss_bytes)

    def _follow(self) -> str:
        """Read until the child has ended; returns the limit it broke, or nothing."""
        deadline = time.monotonic() + self.timeout_s
        with selectors.DefaultSelector() as selector:
            for pipe, target in ((self.process.stdout, self.said), (self.process.stderr, self.complained)):
                if pipe is not None:
                    selector.register(pipe, selectors.EVENT_READ, target)
            while selector.get_map() or self.process.poll() is None:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return f"took longer than {self.timeout_s:g} s"
                ready = selector.select(min(_WATCH_S, left_s))
                for key, _ in ready:
                    self._take(selector, key)
                if len(self.said) > _SAID_LIMIT_BYTES:
                    return "wrote without end"
                if self._too_big():
                    return f"needs more memory than the limit of {(self.memory_bytes or 0) >> 20} MiB"
                if not ready and self.process.poll() is not None:
                    break  # what it started may still hold the pipes open
        return ""

    def _take(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        data = os.read(key.fd, 1 << 16)
        key.data.extend(data)
        del self.complained[:-_COMPLAINED_LIMIT_BYTES]
        if not data:
            selector.unregister(key.fileobj)

    def _too_big(self) -> bool:
        if self.memory_bytes is None:
            return False
        self.peak_rss_bytes = max(self.peak_rss_bytes, host.rss_bytes(self.process.pid))
        return self.peak_rss_bytes > self.memory_bytes

    def _obituary(self, code: int) -> str:
        lines = [line.strip() for line in self.complained.decode("utf-8", "replace").splitlines()]
        words = [line for line in lines if line and not line.startswith(("INFO", "W0", "I0"))]  # a runtime's chatter
        last = f": {words[-1][:200]}" if words else ""
        if code == -signal.SIGKILL:
            return "was killed, as the kernel does when memory runs out" + last
        if code < 0:
            return f"crashed ({signal.Signals(-code).name}){last}"
        return f"ended with exit code {code}{last}"
