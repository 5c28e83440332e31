"""Enrolment: one kit, one key, one certificate, however often the box dies on the way."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from agents.enroll import Identity, enroll, known
from agents.state import StateFolder
from edgert.clock import SystemClock
from edgert.errors import ConfigError, LinkError, RefusedError
from edgert.identity import Authority, certificate_name, request_key_digest
from edgert.wire import topics
from edgert.wire.fleet import Kit
from edgert.wire.messages.claim import ClaimReply, ClaimRequest
from edgert.wire.transports.base import Broker
from edgert.wire.transports.loopback import LoopbackBroker, LoopbackTransport
from tests.support.signed import SignedFleet


class Desk:
    """The fleet's side of enrolment, and the kits it hands out."""

    def __init__(self, folder: Path) -> None:
        now = SystemClock().now()
        self.folder = folder
        self.broker = LoopbackBroker()
        self.authority = Authority.create("fleet", now)
        self.stranger = Authority.create("stranger", now)
        self.requests: list[ClaimRequest] = []
        self.asked_with: list[Broker] = []
        self.reply = lambda request: ClaimReply(device="box1", certificate=self.certificate(request).decode())

    def certificate(self, request: ClaimRequest, name: str = "box1", authority: Authority | None = None) -> bytes:
        return (authority or self.authority).sign_request(request.request.encode(), name, SystemClock().now(), 30)

    def kit(self, device: str = "box1") -> Path:
        folder = self.folder / f"kit-{device}"
        folder.mkdir(parents=True)
        key, certificate = self.authority.issue_client("claim-1", SystemClock().now(), 1)
        kit = Kit(host="loopback", port=1, claim="claim-1", device=device)
        files = {
            "kit.json": kit.encode(), "ca.pem": self.authority.certificate, "claim.pem": certificate,
            "claim.key": key, "root.json": SignedFleet().pinned,
        }  # fmt: skip
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return folder

    def transport(self, broker: Broker) -> LoopbackTransport:
        self.asked_with.append(broker)
        return LoopbackTransport(broker, self.broker)

    async def run(self) -> None:
        transport = self.transport(Broker("loopback", 1, "ota-server"))
        await transport.connect()
        async for delivery in await transport.subscribe(topics.CLAIM_REQUESTS):
            self.requests.append(ClaimRequest.decode(delivery.payload))
            reply = self.reply(self.requests[-1])
            await transport.publish(topics.claim(topics.claim_of(delivery.topic), "reply"), reply.encode())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "desk")


async def ask(desk: Desk, state: StateFolder, kit: Path, *, staffed: bool = True) -> Identity:
    serving = asyncio.ensure_future(desk.run() if staffed else asyncio.sleep(0))
    await asyncio.sleep(0)
    try:
        return await enroll(
            state,
            kit,
            "x86-64",
            transports=desk.transport,
            clock=SystemClock(),
            deadline_s=5 if staffed else 0.05,
        )
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def test_a_kit_becomes_an_identity_whose_key_never_left_the_box(desk: Desk, tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    kit = desk.kit()
    identity = asyncio.run(ask(desk, state, kit))
    assert identity == known(state)
    assert identity.device == "box1"
    assert certificate_name((state.identity / "certificate.pem").read_bytes()) == "box1"
    assert desk.requests[0].profile == "x86-64"
    assert oct((state.identity / "key.pem").stat().st_mode)[-3:] == "600"
    assert not (state.identity / "claim.key").exists()


def test_an_enrolled_box_does_not_ask_again_and_needs_no_kit(desk: Desk, tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    kit = desk.kit()
    first = asyncio.run(ask(desk, state, kit))
    assert asyncio.run(ask(desk, state, kit)) == first
    assert len(desk.requests) == 1
    shutil.rmtree(kit)
    assert known(state) == first


def test_after_a_crash_the_same_key_asks_the_same_question(desk: Desk, tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    kit = desk.kit()
    with pytest.raises(LinkError, match="did not answer claim"):
        asyncio.run(ask(desk, state, kit, staffed=False))
    key = (state.identity / "key.pem").read_bytes()
    asyncio.run(ask(desk, state, kit))
    (state.identity / "certificate.pem").unlink()
    asyncio.run(ask(desk, state, kit))
    assert (state.identity / "key.pem").read_bytes() == key
    assert len({request_key_digest(request.request.encode()) for request in desk.requests}) == 1
    assert desk.requests[0] == desk.requests[1]


def test_a_certificate_that_is_not_ours_is_refused_and_not_kept(desk: Desk, tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    kit = desk.kit()
    other_key, other = desk.authority.issue_client("box1", SystemClock().now(), 1)
    del other_key
    wrong = {
        "another key": lambda request: other,
        "for 'box2'": lambda request: desk.certificate(request, "box2"),
        "authority": lambda request: desk.certificate(request, "box1", desk.stranger),
        "was not made": lambda request: b"rubbish",
    }
    for words, make in wrong.items():
        desk.reply = lambda request, make=make: ClaimReply(device="box1", certificate=make(request).decode())
        with pytest.raises(RefusedError, match=words):
            asyncio.run(ask(desk, state, kit))
        assert known(state) is None


def test_a_refused_claim_says_why(desk: Desk, tmp_path: Path) -> None:
    desk.reply = lambda request: ClaimReply(error="the claim is spent", hint="make another kit")
    with pytest.raises(RefusedError, match="the claim is spent") as caught:
        asyncio.run(ask(desk, StateFolder(tmp_path / "state"), desk.kit()))
    assert caught.value.hint == "make another kit"


def test_the_broker_is_always_asked_for_its_certificate(desk: Desk, tmp_path: Path) -> None:
    """Whatever a kit says: without the authority's certificate there is no connection."""
    kit = desk.kit()
    words = json.loads((kit / "kit.json").read_bytes())
    (kit / "kit.json").write_text(json.dumps(words | {"insecure": True, "tls": False}))
    state = StateFolder(tmp_path / "state")
    identity = asyncio.run(ask(desk, state, kit))
    (asking,) = (broker for broker in desk.asked_with if broker.client_id == "claim-1")
    for broker, folder in ((asking, kit), (identity.broker, state.identity)):
        assert broker.ca == folder / "ca.pem"
        assert broker.certificate is not None
        assert broker.key is not None


def test_a_kit_of_another_box_is_refused(desk: Desk, tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    asyncio.run(ask(desk, state, desk.kit()))
    with pytest.raises(RefusedError, match="enrolled as box1, the kit is for box2"):
        asyncio.run(ask(desk, state, desk.kit("box2")))


def test_an_incomplete_kit_is_named(desk: Desk, tmp_path: Path) -> None:
    kit = desk.kit()
    (kit / "root.json").unlink()
    with pytest.raises(ConfigError, match=r"lacks root\.json"):
        asyncio.run(ask(desk, StateFolder(tmp_path / "state"), kit))
    with pytest.raises(ConfigError, match="no readable"):
        asyncio.run(ask(desk, StateFolder(tmp_path / "state"), tmp_path / "nowhere"))
