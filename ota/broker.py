"""What Mosquitto is told: its configuration, and who may say what (ACL by direction).

A client is its certificate's common name: `use_identity_as_username` makes it the user name, `use_username_as_clientid`
makes it the client id (without it, a device that connects with another's client id throws that one off and inherits
its session). Devices get their rights from patterns, so a new device needs no change here. Every claim certificate has
a block of its own that denies all device topics; a spent claim keeps only the denial.
"""

import logging
import os
import pwd
import shutil
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgert.errors import UsageError
from edgert.files import replacing
from edgert.wire import topics
from ota.config import Home, Settings

__all__ = ["SERVER_NAME", "ClaimRights", "acl", "choose_user", "configuration", "install", "reload", "write_acl"]

logger = logging.getLogger(__name__)

SERVER_NAME: Final = "ota-server"
"""Common name of the server's own certificate."""

_PACKET_LIMIT_BYTES = 1 << 20
_QUEUED_MESSAGES = 1000
_QUEUED_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class ClaimRights:
    """One claim certificate that the broker may meet.

    Args:
        name: its common name.
        usable: False once it is spent: nothing is allowed any more.
    """

    name: str
    usable: bool


def configuration(home: Home) -> str:
    """The text of ``mosquitto.conf``."""
    settings, folder = home.settings, home.broker
    user = [f"user {settings.broker_user}"] if settings.broker_user else []
    listener = f"listener {settings.port} {settings.bind}".rstrip()
    rows = [
        "# Written by `edgert ota init`. Start: mosquitto -c this-file",
        *user,
        f"pid_file {folder / 'mosquitto.pid'}",
        f"acl_file {folder / 'acl'}",
        "per_listener_settings false",
        "allow_anonymous false",
        "persistence false",
        "set_tcp_nodelay true",
        f"max_packet_size {_PACKET_LIMIT_BYTES}",
        f"max_queued_messages {_QUEUED_MESSAGES}",
        f"max_queued_bytes {_QUEUED_BYTES}",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "",
        listener,
        f"cafile {folder / 'ca.pem'}",
        f"certfile {folder / 'server.pem'}",
        f"keyfile {folder / 'server.key'}",
        "tls_version tlsv1.2",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
    ]
    return "\n".join(rows) + "\n"


def acl(claims: Iterable[ClaimRights]) -> str:
    """The text of the ACL file."""
    rows = ["# Written by edgert; every change is overwritten.", f"user {SERVER_NAME}"]
    rows += [f"topic write {topics.every_device(leaf)}" for leaf in topics.DOWN]
    rows += [f"topic read {topics.every_device(leaf)}" for leaf in topics.UP]
    rows += [f"topic readwrite {topics.JOBS}"]
    rows += [f"topic read {topics.CLAIM_REQUESTS}", f"topic write {topics.ROOT}/claim/+/reply"]
    for claim in sorted(claims, key=lambda claim: claim.name):
        rows += ["", f"user {claim.name}", f"topic deny {topics.ROOT}/d/#", f"topic deny {topics.ROOT}/j/#"]
        if claim.usable:
            rows += [f"topic write {topics.claim(claim.name, 'request')}"]
            rows += [f"topic read {topics.claim(claim.name, 'reply')}"]
    rows += ["", "# Devices: %u is the common name of the certificate."]
    rows += [f"pattern read {topics.ROOT}/d/%u/{leaf}" for leaf in topics.DOWN]
    rows += [f"pattern write {topics.ROOT}/d/%u/{leaf}" for leaf in topics.UP]
    rows += [f"pattern read {topics.JOBS}"]
    return "\n".join(rows) + "\n"


def choose_user(wanted: str, home: Path) -> str:
    """Whom the broker becomes when root starts it: `wanted` or ``mosquitto``; empty when it runs as who we are.

    Raises:
        UsageError: that user does not exist or cannot reach the home folder.
    """
    if os.geteuid() != 0:
        return ""
    user = wanted or ("mosquitto" if _exists("mosquitto") else "root")
    if not _exists(user):
        raise UsageError(f"there is no user {user!r} on this machine", hint="name another one with --broker-user")
    above = () if user == "root" else home.resolve().parents
    closed = next((folder for folder in above if not _may_enter(folder, user)), None)
    if closed is not None:
        raise UsageError(
            f"the broker would run as user {user}, who may not enter {closed}",
            hint="choose another folder for the home, or --broker-user root",
        )
    return user


def install(home: Home, *, ca: bytes, certificate: bytes, key: bytes) -> None:
    """Write everything Mosquitto needs, readable for the user it will run as."""
    home.broker.mkdir(parents=True, exist_ok=True)
    _own(home.broker, home.settings, 0o700)
    _write(home, "ca.pem", ca)
    _write(home, "server.pem", certificate)
    _write(home, "server.key", key)
    _write(home, "acl", acl(()).encode())
    _write(home, "mosquitto.conf", configuration(home).encode())


def write_acl(home: Home, claims: Sequence[ClaimRights]) -> bool:
    """Replace the ACL if it differs; returns whether it did."""
    text = acl(claims).encode()
    path = home.broker / "acl"
    if path.is_file() and path.read_bytes() == text:
        return False
    _write(home, "acl", text)
    return True


def reload(home: Home) -> bool:
    """Tell a running broker to read its ACL again; returns whether one was running on this machine."""
    try:
        pid = int((home.broker / "mosquitto.pid").read_text(encoding="ascii"))
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False
    if b"mosquitto" not in command:
        return False  # the pid file is stale and the number belongs to another program now
    try:
        os.kill(pid, signal.SIGHUP)
    except ProcessLookupError:
        return False
    except PermissionError:
        logger.warning("the broker runs as another user: send SIGHUP to process %d, it must read its ACL again", pid)
        return False
    return True


def _write(home: Home, name: str, data: bytes) -> None:
    with replacing(home.broker / name, mode=0o600) as temporary:
        temporary.write_bytes(data)
        _own(temporary, home.settings, 0o600)


def _own(path: Path, settings: Settings, mode: int) -> None:
    path.chmod(mode)
    if settings.broker_user and os.geteuid() == 0:
        shutil.chown(path, settings.broker_user)


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _may_enter(folder: Path, user: str) -> bool:
    entry, status = pwd.getpwnam(user), folder.stat()
    if status.st_uid == entry.pw_uid:
        return bool(status.st_mode & 0o100)
    if status.st_gid in os.getgrouplist(user, entry.pw_gid):
        return bool(status.st_mode & 0o010)
    return bool(status.st_mode & 0o001)
