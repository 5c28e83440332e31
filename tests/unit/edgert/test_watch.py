"""A child process under watch: real programs that misbehave."""

import os
import select
import sys

import pytest

from edgert.errors import TrialError
from edgert.watch import Ended, converse


def python(code: str, question: bytes = b"", *, timeout_s: float = 20, memory_bytes: int | None = None) -> Ended:
    return converse([sys.executable, "-c", code], question, timeout_s=timeout_s, memory_bytes=memory_bytes)


def test_a_child_answers_its_question() -> None:
    ended = python("import sys; sys.stdout.write(sys.stdin.read().upper())", b"what " * 50_000)
    assert (ended.said, ended.trouble) == (b"WHAT " * 50_000, "")


def test_a_crash_is_named_by_its_signal() -> None:
    ended = python("import ctypes; print('half', flush=True); ctypes.string_at(0)")
    assert ended.said == b"half\n"
    assert "crashed (SIGSEGV)" in ended.trouble


def test_an_exit_code_comes_with_the_last_words() -> None:
    ended = python("import sys; print('INFO: chatter', file=sys.stderr); sys.exit('no such operator')")
    assert ended.trouble == "ended with exit code 1: no such operator"


def test_a_hang_ends_at_the_limit() -> None:
    ended = python("import threading; threading.Event().wait()", timeout_s=0.3)
    assert ended.trouble == "took longer than 0.3 s"


def test_a_child_that_closes_its_pipes_is_still_watched() -> None:
    code = "import os, threading; os.close(1); os.close(2); threading.Event().wait()"
    assert "took longer" in python(code, timeout_s=0.5).trouble


def test_a_memory_blow_up_ends_at_the_limit() -> None:
    code = "blocks = []\nwhile True: blocks.append(b'x' * (4 << 20))"
    ended = python(code, memory_bytes=150 << 20)
    assert ended.trouble == "needs more memory than the limit of 150 MiB"
    assert ended.peak_rss_bytes > 150 << 20


def test_reserved_memory_that_is_never_touched_does_not_count() -> None:
    code = "import mmap; m = mmap.mmap(-1, 8 << 30); print('fine')"
    assert python(code, memory_bytes=150 << 20).trouble == ""


def test_a_flood_of_words_is_stopped() -> None:
    ended = python("import sys\nwhile True: sys.stdout.write('x' * 65536)")
    assert ended.trouble == "wrote without end"
    assert len(ended.said) < 6 << 20


def test_a_flood_of_complaints_does_no_harm() -> None:
    ended = python("import sys; sys.stderr.write('x' * (8 << 20) + '\\nlast words\\n'); sys.exit(3)")
    assert ended.trouble == "ended with exit code 3: last words"


def test_what_the_child_started_dies_with_it() -> None:
    code = (
        "import subprocess, sys; "
        "p = subprocess.Popen([sys.executable, '-c', 'import threading; threading.Event().wait()']); print(p.pid)"
    )
    ended = python(code)
    assert ended.trouble == ""
    try:
        child = os.pidfd_open(int(ended.said))
    except ProcessLookupError:
        return  # dead and gone already
    with open(child, "rb") as handle:  # noqa: PTH123 - a descriptor, no path
        ready, _, _ = select.select([handle], [], [], 10)
    assert ready


def test_a_program_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(TrialError, match="cannot start"):
        converse(["/nowhere/python"], b"", timeout_s=1)


def test_only_answers_reach_private_standard_output_and_the_environment_is_the_given_one() -> None:
    program = """
import os
from edgert import watch
answers = watch.private_stdout()
print("noise of a library")
os.write(1, b"noise of native code")
answers.write(os.environ["WORD"])
answers.flush()
"""
    environment = {**os.environ, "WORD": "answer"}
    ended = converse([sys.executable, "-P", "-c", program], b"", timeout_s=60, environment=environment)
    assert (ended.said, ended.trouble) == (b"answer", "")
