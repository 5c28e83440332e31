"""What Mosquitto is told."""

import os
from pathlib import Path

import pytest

from edgert.errors import UsageError
from edgert.wire import topics
from ota.broker import ClaimRights, acl, choose_user, configuration, reload, write_acl
from ota.config import Home, Settings


def home(tmp_path: Path, **values: object) -> Home:
    return Home(tmp_path, Settings.model_validate({"host": "broker.example", **values}))


def blocks(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in text.splitlines():
        if line.startswith("user "):
            name = line.removeprefix("user ")
            found[name] = []
        elif line and not line.startswith("#"):
            found["" if line.startswith("pattern") else name].append(line)
    return found


def test_devices_read_only_down_topics_and_write_only_up_topics_of_their_own() -> None:
    rows = blocks(acl(()))[""]
    down = [f"pattern read {topics.ROOT}/d/%u/{leaf}" for leaf in topics.DOWN]
    up = [f"pattern write {topics.ROOT}/d/%u/{leaf}" for leaf in topics.UP]
    assert sorted(rows) == sorted([*down, *up, f"pattern read {topics.JOBS}"])


def test_the_server_writes_only_down_and_reads_only_up() -> None:
    rows = blocks(acl(()))["ota-server"]
    assert {row for row in rows if "/d/" in row} == {
        *(f"topic write {topics.every_device(leaf)}" for leaf in topics.DOWN),
        *(f"topic read {topics.every_device(leaf)}" for leaf in topics.UP),
    }


def test_a_claim_has_two_topics_and_a_denial_and_a_spent_one_only_the_denial() -> None:
    found = blocks(acl([ClaimRights("claim-b", usable=False), ClaimRights("claim-a", usable=True)]))
    denial = [f"topic deny {topics.ROOT}/d/#", f"topic deny {topics.ROOT}/j/#"]
    assert found["claim-b"] == denial
    assert found["claim-a"] == [
        *denial,
        f"topic write {topics.ROOT}/claim/claim-a/request",
        f"topic read {topics.ROOT}/claim/claim-a/reply",
    ]


def test_the_configuration_demands_tls_and_certificates(tmp_path: Path) -> None:
    rows = configuration(home(tmp_path, port=9000, bind="10.0.0.1", broker_user="mosquitto")).splitlines()
    for row in (
        "user mosquitto",
        "listener 9000 10.0.0.1",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "allow_anonymous false",
        "tls_version tlsv1.2",
        "set_tcp_nodelay true",
        "persistence false",
    ):
        assert row in rows
    assert any(row.startswith("max_queued_bytes ") for row in rows)


def test_the_acl_is_written_only_when_it_changes(tmp_path: Path) -> None:
    place = home(tmp_path)
    place.broker.mkdir()
    assert write_acl(place, [ClaimRights("claim-a", usable=True)])
    assert not write_acl(place, [ClaimRights("claim-a", usable=True)])
    assert write_acl(place, [ClaimRights("claim-a", usable=False)])
    assert (place.broker / "acl").stat().st_mode & 0o777 == 0o600


def test_a_stale_pid_file_signals_nobody(tmp_path: Path) -> None:
    place = home(tmp_path)
    place.broker.mkdir()
    assert not reload(place)
    (place.broker / "mosquitto.pid").write_text(f"{os.getppid()}\n")
    assert not reload(place)
    (place.broker / "mosquitto.pid").write_text("nonsense")
    assert not reload(place)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root chooses whom the broker becomes")
def test_a_broker_that_could_not_reach_its_files_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert choose_user("root", closed / "home") == "root"
    with pytest.raises(UsageError, match="may not enter"):
        choose_user("nobody", closed / "home")
    with pytest.raises(UsageError, match="no user"):
        choose_user("nobody-of-that-name", closed / "home")
