"""Claims: one box, one key, one end."""

from datetime import timedelta
from pathlib import Path

import pytest

from edgert.clock import ManualClock
from edgert.errors import UsageError
from edgert.identity import certificate_expiry, certificate_name, make_key, make_request
from edgert.wire.fleet import Kit
from edgert.wire.messages.claim import ClaimReply, ClaimRequest
from ota import claims
from ota.fleet import Fleet
from ota.operations.actor import local_operator
from ota.operations.enrol import claims_list, claims_new, devices_list
from ota.store import devices
from tests.support.fleet import fleet

ACTOR = local_operator()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def made(tmp_path: Path, clock: ManualClock) -> Fleet:
    return fleet(tmp_path, clock)


def ask(made: Fleet, name: str, request: bytes) -> ClaimReply:
    with made.database.write() as session:
        message = ClaimRequest(request=request.decode(), profile="x86-64")
        return claims.admit(session, made.clock, made.authority(), name, message, 365)


def state(made: Fleet) -> str:
    return str(claims_list(made, ACTOR)[0]["state"])


def test_a_kit_holds_everything_and_is_closed_to_others(made: Fleet, tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    result = claims_new(made, ACTOR, "box1", kit)
    assert {path.name for path in kit.iterdir()} == {"kit.json", "ca.pem", "claim.pem", "claim.key", "root.json"}
    assert kit.stat().st_mode & 0o777 == 0o700
    assert (kit / "claim.key").stat().st_mode & 0o777 == 0o600
    parsed = Kit.decode((kit / "kit.json").read_bytes())
    assert (parsed.device, parsed.claim) == ("box1", result["claim"])
    assert certificate_name((kit / "claim.pem").read_bytes()) == parsed.claim
    assert certificate_expiry((kit / "claim.pem").read_bytes()) == made.clock.now() + timedelta(days=30)
    assert f"user {parsed.claim}\n" in (made.home.broker / "acl").read_text()


@pytest.mark.parametrize("name", ["ota-server", "claim-x", "Box", "", "a/b", "+"])
def test_a_name_that_means_something_else_is_refused(made: Fleet, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        claims_new(made, ACTOR, name, tmp_path / "kit")
    assert not (tmp_path / "kit").exists()
    assert claims_list(made, ACTOR) == []


def test_a_folder_that_exists_is_never_written_to(made: Fleet, tmp_path: Path) -> None:
    (tmp_path / "kit").mkdir()
    with pytest.raises(UsageError, match="exists"):
        claims_new(made, ACTOR, "box1", tmp_path / "kit")
    assert claims_list(made, ACTOR) == []


def test_one_device_has_one_good_claim(made: Fleet, clock: ManualClock, tmp_path: Path) -> None:
    claims_new(made, ACTOR, "box1", tmp_path / "kit1")
    with pytest.raises(UsageError, match="a claim for device"):
        claims_new(made, ACTOR, "box1", tmp_path / "kit2")
    clock.advance(31 * 86_400)
    claims_new(made, ACTOR, "box1", tmp_path / "kit3")
    assert len(claims_list(made, ACTOR)) == 1


def test_a_claim_is_bound_to_its_first_key(made: Fleet, tmp_path: Path) -> None:
    name = str(claims_new(made, ACTOR, "box1", tmp_path / "kit")["claim"])
    key = make_key()
    first = ask(made, name, make_request(key, "something-else"))
    assert certificate_name(first.certificate.encode()) == "box1"
    assert state(made) == "bound"
    assert ask(made, name, make_request(key, "box1")).certificate == first.certificate
    refused = ask(made, name, make_request(make_key(), "box1"))
    assert (refused.certificate, refused.device) == ("", "")
    assert "another key" in refused.error
    assert [row["device"] for row in devices_list(made, ACTOR)] == ["box1"]


def test_a_spent_unknown_or_expired_claim_gives_nothing(made: Fleet, clock: ManualClock, tmp_path: Path) -> None:
    request = make_request(make_key(), "box1")
    name = str(claims_new(made, ACTOR, "box1", tmp_path / "kit")["claim"])
    assert "not known" in ask(made, "claim-unknown", request).error
    assert ask(made, name, request).certificate
    with made.database.write() as session:
        assert claims.settle(session, "box1")
        assert not claims.settle(session, "box1")
    assert "spent" in ask(made, name, request).error
    other = str(claims_new(made, ACTOR, "box2", tmp_path / "kit2")["claim"])
    clock.advance(30 * 86_400)
    assert "expired" in ask(made, other, request).error
    claims.update_broker(made)
    text = (made.home.broker / "acl").read_text()
    assert f"user {other}\n" in text
    assert f"claim/{other}/request" not in text


def test_a_request_that_proves_no_key_is_refused(made: Fleet, tmp_path: Path) -> None:
    name = str(claims_new(made, ACTOR, "box1", tmp_path / "kit")["claim"])
    assert "not a certificate request" in ask(made, name, b"rubbish").error
    assert state(made) == "open"
    with made.database.read() as session:
        assert devices.find(session, "box1") is None
