"""Every command that the words for users show is run as it stands there."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.broker import mosquitto_program

_ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _blocks(page: Path) -> list[str]:
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.journey
@pytest.mark.timeout(240)
def test_the_walk_through_of_the_readme_runs_as_written() -> None:
    mosquitto_program()
    walk = "\n".join(block for block in _blocks(_ROOT / "README.md") if not block.startswith("make "))
    script = f"set -eu\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n{walk}"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"}
    with tempfile.TemporaryDirectory(prefix="edgert-readme-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)  # the broker started by root becomes another user, who must reach its files
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=220,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_readme_shows_only_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (_ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md"):
        shown = set(re.findall(r"^make ([a-z-]+)", "\n".join(_blocks(_ROOT / page)), re.MULTILINE))
        assert shown <= targets
