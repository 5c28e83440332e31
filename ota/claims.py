"""Enrolment: a claim certificate made for one box, and the certificate the box gets for it.

A claim has its own name at the broker, rights on its own two topics only, an end, and is bound to the first key that
uses it: the same request again gives the same certificate again (the answer may have been lost), another key is
refused. It is spent once the box has reported with its own certificate.
"""

import logging
import secrets
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

from edgert.clock import Clock
from edgert.errors import EdgeRTError, RefusedError, StoreError, UsageError
from edgert.files import fsync_folder, write_durable
from edgert.identity import Authority, certificate_expiry, request_key_digest
from edgert.values import is_name
from edgert.wire.fleet import Kit
from edgert.wire.messages.claim import ClaimReply, ClaimRequest
from ota import broker
from ota.broker import SERVER_NAME, ClaimRights
from ota.config import locked
from ota.fleet import Fleet
from ota.store import ClaimRow, DeviceRow, Session, claims, devices

__all__ = ["CLAIM_PREFIX", "admit", "check_device_name", "open_claim", "settle", "update_broker", "write_kit"]

logger = logging.getLogger(__name__)

CLAIM_PREFIX = "claim-"
_DELETE_AFTER = timedelta(days=1)


def check_device_name(name: str) -> None:
    """Refuse names that cannot be a device's.

    Raises:
        UsageError: not a name, or one that means something else at the broker.
    """
    if not is_name(name):
        raise UsageError(f"{name[:80]!r} cannot name a device", hint="lower-case letters, digits, '.', '_' and '-'")
    if name == SERVER_NAME or name.startswith(CLAIM_PREFIX):
        raise UsageError(f"the name {name!r} is reserved", hint="choose another one")


def open_claim(session: Session, device: str, now: datetime, days: int) -> ClaimRow:
    """A new claim for a device that does not exist yet.

    Raises:
        UsageError: the name cannot be used, is taken, or has a claim that is still good.
    """
    check_device_name(device)
    if devices.find(session, device) is not None:
        raise UsageError(f"device {device!r} is enrolled already", hint="every box has a name of its own")
    old = claims.of_device(session, device)
    if old is not None and old.expires > now:
        raise UsageError(
            f"there is a claim for device {device!r} already, good until {old.expires:%Y-%m-%d}",
            hint="see `edgert ota claims list`",
        )
    if old is not None:
        session.delete(old)
        session.flush()
    name = CLAIM_PREFIX + secrets.token_hex(8)
    row = ClaimRow(name=name, device=device, created=now, expires=now + timedelta(days=days))
    session.add(row)
    return row


def write_kit(fleet: Fleet, claim: ClaimRow, days: int, folder: Path) -> None:
    """The folder that is carried to the box: all of it or nothing, closed to other users.

    Raises:
        UsageError: the folder exists.
        StoreError: it cannot be written.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists", hint="give a new folder")
    settings, authority = fleet.home.settings, fleet.authority()
    key, certificate = authority.issue_client(claim.name, fleet.clock.now(), days)
    kit = Kit(host=settings.host, port=settings.port, claim=claim.name, device=claim.device)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".kit-", dir=folder.parent) as scratch:
            draft = Path(scratch) / folder.name
            draft.mkdir(mode=0o700)
            write_durable(draft / "kit.json", kit.encode())
            write_durable(draft / "ca.pem", authority.certificate)
            write_durable(draft / "claim.pem", certificate)
            write_durable(draft / "claim.key", key, mode=0o600)
            write_durable(draft / "root.json", fleet.repository.root())
            draft.rename(folder)
        fsync_folder(folder.parent)
    except OSError as e:
        raise StoreError(
            f"cannot write the kit {folder}: {e.strerror}", hint="is there room, and may you write there?"
        ) from e


def admit(
    session: Session, clock: Clock, authority: Authority, name: str, request: ClaimRequest, days: int
) -> ClaimReply:
    """The answer to a request that came in under the claim `name`; writes the device's row at first use.

    Args:
        name: from the topic, which only the holder of that claim certificate may write.
        days: lifetime of the device's certificate.
    """
    try:
        return _admit(session, clock.now(), authority, name, request, days)
    except EdgeRTError as e:
        logger.warning("refused claim %s: %s", name, e)
        return ClaimReply(error=e.message, hint=e.hint)


def settle(session: Session, device: str) -> bool:
    """Spend the claim of a device that has reported under its own certificate; returns whether that was new."""
    claim = claims.of_device(session, device)
    if claim is None or claim.spent or claim.key_digest is None:
        return False
    claim.spent = True
    return True


def update_broker(fleet: Fleet) -> None:
    """Bring the broker's ACL in line with the claims in the database, and tell the broker if it changed.

    A spent or expired claim keeps a block that denies everything for as long as its certificate could still connect.
    """
    now = fleet.clock.now()
    with locked(fleet.home.root, "acl"):
        with fleet.database.read() as session:
            rights = [
                ClaimRights(row.name, usable=not row.spent and row.expires > now)
                for row in claims.every(session)
                if row.expires > now - _DELETE_AFTER
            ]
        if broker.write_acl(fleet.home, rights):
            logger.info("changed the broker's ACL%s", "" if broker.reload(fleet.home) else "; no broker runs here")


def _admit(
    session: Session, now: datetime, authority: Authority, name: str, request: ClaimRequest, days: int
) -> ClaimReply:
    claim = claims.find(session, name)
    if claim is None:
        raise RefusedError("this claim is not known here", hint="make a new kit with `edgert ota claims new`")
    if claim.spent:
        raise RefusedError("this claim is spent", hint="make a new kit with `edgert ota claims new`")
    if claim.expires <= now:
        raise RefusedError(
            f"this claim expired at {claim.expires.isoformat()}", hint="make a new kit with `edgert ota claims new`"
        )
    pem = request.request.encode()
    key = request_key_digest(pem)
    if claim.key_digest is None:
        certificate = authority.sign_request(pem, claim.device, now, days)
        claim.key_digest, claim.certificate = key, certificate.decode()
        session.add(
            DeviceRow(
                id=claim.device,
                profile=request.profile,
                created=now,
                certificate_expires=certificate_expiry(certificate),
                revision=1,
            )
        )
        logger.info("enrolled device %s with profile %s", claim.device, request.profile)
    elif claim.key_digest != key:
        raise RefusedError(
            "this claim was used by another key", hint="was the kit copied? every box needs a kit of its own"
        )
    return ClaimReply(device=claim.device, certificate=claim.certificate or "")
