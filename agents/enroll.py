"""Enrolment: a kit and a key made on the box become a certificate, once; safe to repeat after a crash anywhere."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from agents.state import StateFolder
from edgert.clock import Clock
from edgert.errors import ConfigError, LinkError, MessageError, RefusedError
from edgert.files import write_durable
from edgert.identity import check_certificate, make_key, make_request
from edgert.wire import topics
from edgert.wire.fleet import Kit
from edgert.wire.link import Link
from edgert.wire.messages.claim import ClaimReply, ClaimRequest
from edgert.wire.transports.base import Broker, Delivery, Subscription, Transport

__all__ = ["Identity", "Transports", "enroll", "known", "read_kit"]

logger = logging.getLogger(__name__)

Transports = Callable[[Broker], Transport]
"""Makes a transport that is not connected yet."""

_ASK_AGAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who an enrolled box is.

    Args:
        device: its name = common name of its certificate.
        broker: where the fleet's broker is and the files to prove ourselves with.
        root: the pinned TUF root metadata.
    """

    device: str
    broker: Broker
    root: bytes


def read_kit(folder: Path) -> Kit:
    """The kit in `folder`.

    Raises:
        ConfigError: it is incomplete.
    """
    kit = _kit(folder / "kit.json")
    lacking = [name for name in ("ca.pem", "claim.pem", "claim.key", "root.json") if not (folder / name).is_file()]
    if lacking:
        raise ConfigError(f"the kit {folder} lacks {', '.join(lacking)}", hint="make one with `edgert ota claims new`")
    return kit


def known(state: StateFolder) -> Identity | None:
    """Who this box is, or None before it enrolled.

    Raises:
        ConfigError: what it was told when it enrolled cannot be read.
    """
    if not (state.identity / "certificate.pem").is_file():
        return None
    kit = _kit(state.identity / "device.json")
    try:
        root = (state.identity / "root.json").read_bytes()
    except OSError as e:
        raise ConfigError(f"{state.identity / 'root.json'} cannot be read", hint="enrol again with a new kit") from e
    return Identity(kit.device, _broker(kit, state.identity, kit.device, "certificate.pem", "key.pem"), root)


async def enroll(
    state: StateFolder,
    kit_folder: Path,
    profile: str,
    *,
    transports: Transports,
    clock: Clock,
    deadline_s: float = 60.0,
) -> Identity:
    """Turn the kit into an identity; one that is there already is returned as it is.

    The same key asks the same question after every crash, so the server can give the same certificate again.

    Raises:
        ConfigError: the kit is incomplete.
        RefusedError: the fleet refused the claim, or answered with a certificate that is not ours.
        LinkError: the broker cannot be reached, or no answer came in time.
        StoreError: the identity cannot be kept.
    """
    kit = read_kit(kit_folder)
    here = known(state)
    if here is not None:
        if here.device != kit.device:
            raise RefusedError(
                f"this box is enrolled as {here.device}, the kit is for {kit.device}",
                hint="give another --state folder, or the right kit",
            )
        return here
    key, request = _prepared(state, kit, kit_folder)
    transport = transports(_broker(kit, kit_folder, kit.claim, "claim.pem", "claim.key"))
    try:
        await transport.connect(timeout_s=min(10.0, deadline_s))
        reply = await _asked(Link(transport, clock), kit, ClaimRequest(request=request, profile=profile), deadline_s)
    finally:
        await transport.close()
    if reply.error or not reply.certificate:
        raise RefusedError(
            f"the fleet refused claim {kit.claim}: {reply.error or 'no certificate'}",
            hint=reply.hint or "make a new kit with `edgert ota claims new`",
        )
    certificate = reply.certificate.encode()
    check_certificate(certificate, authority=(kit_folder / "ca.pem").read_bytes(), key=key, name=kit.device)
    write_durable(state.identity / "certificate.pem", certificate, mode=0o600)
    logger.info("enrolled as %s", kit.device)
    identity = known(state)
    if identity is None:
        raise LinkError("the certificate vanished", hint="check the disk")
    return identity


def _prepared(state: StateFolder, kit: Kit, folder: Path) -> tuple[bytes, str]:
    """Key and request, durable before anything is asked; made once."""
    key_path, request_path = state.identity / "key.pem", state.identity / "request.pem"
    if not key_path.is_file():
        write_durable(key_path, make_key(), mode=0o600)
    key = key_path.read_bytes()
    if not request_path.is_file():
        write_durable(request_path, make_request(key, kit.device), mode=0o600)
    for name in ("ca.pem", "root.json"):
        write_durable(state.identity / name, (folder / name).read_bytes(), mode=0o600)
    write_durable(state.identity / "device.json", kit.encode(), mode=0o600)
    return key, request_path.read_text(encoding="ascii")


async def _asked(link: Link, kit: Kit, request: ClaimRequest, deadline_s: float) -> ClaimReply:
    replies = await link.listen(topics.claim(kit.claim, "reply"))
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                await link.send(topics.claim(kit.claim, "request"), request)
                delivery = await _next(replies)
                if delivery is not None:
                    try:
                        return ClaimReply.decode(delivery.payload)
                    except MessageError as e:
                        logger.warning("an answer to claim %s was not understood: %s", kit.claim, e.message)
    except TimeoutError as e:
        raise LinkError(
            f"the fleet did not answer claim {kit.claim} in {deadline_s:g} s",
            hint="is `edgert ota serve` running, and is the claim still good?",
        ) from e
    finally:
        await replies.aclose()


async def _next(replies: Subscription) -> Delivery | None:
    try:
        async with asyncio.timeout(_ASK_AGAIN_S):
            return await anext(replies)
    except TimeoutError:
        return None
    except StopAsyncIteration as e:
        raise LinkError("the connection to the broker was closed", hint="run the command again") from e


def _kit(path: Path) -> Kit:
    try:
        return Kit.model_validate_json(path.read_bytes())
    except OSError as e:
        raise ConfigError(f"there is no readable {path}", hint="make a kit with `edgert ota claims new`") from e
    except ValidationError as e:
        raise ConfigError(f"{path} cannot be understood", hint="make a kit with `edgert ota claims new`") from e


def _broker(kit: Kit, folder: Path, name: str, certificate: str, key: str) -> Broker:
    return Broker(kit.host, kit.port, name, folder / "ca.pem", folder / certificate, folder / key)
