"""The home folder, its settings, its database, and the verbs that make and show it."""

import json
import os
import threading
from pathlib import Path

import pytest

from edgert.cli import main
from edgert.clock import SystemClock
from edgert.errors import ConfigError, UsageError
from ota.config import Home
from ota.fleet import Fleet, create
from ota.store import DeviceRow, devices
from tests.support.fleet import bundle_file, enrolled_row, fleet

USER = ("--broker-user", "root") if os.geteuid() == 0 else ()


def test_nothing_secret_can_be_read_by_others(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    assert made.home.root.stat().st_mode & 0o077 == 0
    for name in ("keys", "ca", "sources", "updates", "store"):
        assert (made.home.root / name).stat().st_mode & 0o077 == 0
    secret = [path for path in made.home.root.rglob("*") if path.suffix in (".key", ".hex") or "keys/" in str(path)]
    assert len(secret) >= 8
    assert {path.stat().st_mode & 0o777 for path in [*secret, made.home.database]} == {0o600}


def test_settings_survive_and_unknown_keys_are_refused(tmp_path: Path) -> None:
    made = fleet(tmp_path, port=1234, claim_days=3)
    again = Home.open(made.home.root)
    assert again.settings == made.home.settings
    (again.root / "ota.toml").write_text('host = "x"\nprot = 1\n')
    with pytest.raises(ConfigError, match="prot"):
        Home.open(again.root)


def test_a_folder_with_something_in_it_is_not_made_a_home(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        create(tmp_path, Home.settings_of({"host": "x"}), SystemClock())
    with pytest.raises(UsageError, match="not the home of a fleet"):
        Fleet.open(tmp_path)
    with pytest.raises(ConfigError, match="port"):
        Home.settings_of({"host": "x", "port": 0})


def test_the_database_version_tells_of_changes_by_others(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    before = made.database.version()
    assert made.database.version() == before
    other = Fleet.open(made.home.root)
    enrolled_row(other, "box1")
    other.close()
    assert made.database.version() != before


def test_writers_take_turns_and_an_error_undoes_everything(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    enrolled_row(made, "box1")

    def count_up() -> None:
        for _ in range(5):
            with made.database.write() as session:
                devices.get(session, "box1").revision += 1

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with pytest.raises(UsageError):
        _change_two(made, "box1", "nobody")
    with made.database.read() as session:
        row: DeviceRow = devices.get(session, "box1")
        assert row.revision == 21
        assert row.created.tzinfo is not None


def _change_two(made: Fleet, *names: str) -> None:
    with made.database.write() as session:
        for name in names:
            devices.get(session, name).revision = 99


def test_the_verbs_make_a_fleet_and_show_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "fleet"
    assert main(["ota", "init", str(home), "--host", "127.0.0.1", *USER]) == 0
    assert "mosquitto -c" in capsys.readouterr().out
    kit = tmp_path / "kit"
    assert main(["ota", "claims", "new", str(home), "--device", "box1", "-o", str(kit), "--json"]) == 0
    claim = json.loads(capsys.readouterr().out)
    assert claim["device"] == "box1"
    assert main(["ota", "claims", "list", str(home), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["claims"][0]["claim"] == claim["claim"]
    bundle_file(tmp_path / "m.edgert")
    assert main(["ota", "publish", str(home), str(tmp_path / "m.edgert"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == 1
    made = Fleet.open(home)
    enrolled_row(made, "box1")
    made.close()
    assert main(["ota", "rollout", str(home), "--model", "tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "RUNNING"
    for verb in (["ota", "devices"], ["ota", "claims", "list"], ["federate", "status"]):
        assert main([*verb, str(home)]) == 0
    assert "box1" in capsys.readouterr().out


def test_wrong_use_is_one_line_and_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ota", "devices", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "hint: make one with `edgert ota init`" in error


def test_waiting_for_a_rollout_has_an_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = fleet(tmp_path)
    enrolled_row(made, "box1")
    made.close()
    bundle_file(tmp_path / "m.edgert")
    assert main(["ota", "publish", str(made.home.root), str(tmp_path / "m.edgert")]) == 0
    arguments = ["ota", "rollout", str(made.home.root), "--model", "tiny", "--wait", "--timeout-s", "0.2"]
    assert main(arguments) == 1
    assert "waiting for box1" in capsys.readouterr().err
