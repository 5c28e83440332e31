"""The private keys of a fleet: one per TUF role, one for assignments, one for federated jobs; all Ed25519.

Files are PEM (TUF roles) or 32 bytes in hex (envelopes), mode 0600, written atomically and never replaced.
"""

from pathlib import Path
from typing import Final, Literal, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

from edgert.envelope import SigningKey
from edgert.errors import StoreError, UsageError
from edgert.files import write_durable

__all__ = ["ENVELOPES", "ROLES", "EnvelopeUse", "Role", "create", "envelope_key", "signer"]

Role = Literal["root", "targets", "snapshot", "timestamp"]
EnvelopeUse = Literal["assignment", "federation"]
ROLES: Final[tuple[Role, ...]] = ("root", "targets", "snapshot", "timestamp")
ENVELOPES: Final[tuple[EnvelopeUse, ...]] = ("assignment", "federation")


def create(folder: Path) -> None:
    """Make every key of a new fleet.

    Raises:
        UsageError: the folder holds keys already.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} holds keys already", hint="keys are never overwritten")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for role in ROLES:
        write_durable(folder / f"{role}.pem", CryptoSigner.generate_ed25519().private_bytes, mode=0o600)
    for use in ENVELOPES:
        write_durable(folder / f"{use}.hex", SigningKey().private_bytes().hex().encode(), mode=0o600)


def signer(folder: Path, role: Role) -> CryptoSigner:
    """The signer of a TUF role.

    Raises:
        StoreError: its key is missing or damaged.
    """
    try:
        key = load_pem_private_key(_read(folder / f"{role}.pem"), password=None)
    except ValueError as e:
        raise StoreError(f"the key of role {role} is damaged", hint="restore the fleet's home from a backup") from e
    return CryptoSigner(cast(Ed25519PrivateKey, key))


def envelope_key(folder: Path, use: EnvelopeUse) -> SigningKey:
    """The key that signs assignments or announcements of federated jobs.

    Raises:
        StoreError: it is missing or damaged.
    """
    try:
        return SigningKey(bytes.fromhex(_read(folder / f"{use}.hex").decode("ascii")))
    except ValueError as e:
        raise StoreError(f"the {use} key is damaged", hint="restore the fleet's home from a backup") from e


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise StoreError(
            f"cannot read the key {path}: {e.strerror}", hint="restore it from the backup of the fleet's home"
        ) from e
