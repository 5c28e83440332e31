"""A signed repository in memory, made with python-tuf's repository API, that can be told to lie."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from edgert.envelope import SigningKey
from edgert.errors import LinkError, NotFoundError
from edgert.values import digest
from edgert.wire.fleet import FLEET_KEYS, FleetKeys

__all__ = ["ROLES", "START", "SignedFleet"]

ROLES = ("root", "targets", "snapshot", "timestamp")
START = datetime(2026, 1, 1, tzinfo=UTC)


class SignedFleet:
    """Serves ``metadata/<file>`` and targets by digest as `edgert.wire.link.Fetcher` would.

    Args:
        expires: of every role, unless set otherwise.
    """

    def __init__(self, expires: datetime = START + timedelta(days=10)) -> None:
        self.signers = {role: [CryptoSigner.generate_ed25519()] for role in ROLES}
        self.assignment, self.federation = SigningKey(), SigningKey()
        self.root = Root(expires=expires, consistent_snapshot=True)
        self.targets = Targets(expires=expires)
        self.snapshot = Snapshot(expires=expires)
        self.timestamp = Timestamp(expires=expires)
        self.files: dict[str, bytes] = {}
        self.away = False
        self.asked: list[str] = []
        for role, signers in self.signers.items():
            for signer in signers:
                self.root.add_key(signer.public_key, role)
        self.add(FLEET_KEYS, self.fleet_keys().encode())
        self.publish(ROLES)
        self.pinned = self.files["metadata/1.root.json"]

    def fleet_keys(self) -> FleetKeys:
        """Who may sign envelopes."""
        import base64

        return FleetKeys(
            assignment=(base64.b64encode(self.assignment.public_bytes()).decode(),),
            federation=(base64.b64encode(self.federation.public_bytes()).decode(),),
        )

    def add(self, path: str, data: bytes) -> str:
        """Name a target; `publish` signs it. Returns its digest."""
        self.targets.targets[path] = TargetFile.from_data(path, data, ["sha256"])
        self.files[digest(data)] = data
        return digest(data)

    def publish(self, roles: Iterable[str] = ("targets", "snapshot", "timestamp"), *, bump: bool = False) -> None:
        """Sign roles anew; with `bump` under their next version."""
        for role in roles:
            signed: Any = getattr(self, role)
            signed.version += int(bump)
            if role == "snapshot":
                signed.meta["targets.json"] = MetaFile(self.targets.version)
            if role == "timestamp":
                signed.snapshot_meta = MetaFile(self.snapshot.version)
            name = "timestamp.json" if role == "timestamp" else f"{signed.version}.{role}.json"
            self.files[f"metadata/{name}"] = self.signed(role)

    def signed(self, role: str, signers: Iterable[CryptoSigner] | None = None) -> bytes:
        """The metadata file of a role as it is now, signed by its keys or by others."""
        metadata = Metadata(getattr(self, role))
        for signer in self.signers[role] if signers is None else signers:
            metadata.sign(signer, append=True)
        return bytes(metadata.to_bytes(JSONSerializer()))

    def rotate(self, role: str) -> None:
        """Give a role another key, in a new root signed by the old root keys and the new ones."""
        old_root = list(self.signers["root"])
        for signer in self.signers[role]:
            self.root.revoke_key(signer.public_key.keyid, role)
        self.signers[role] = [CryptoSigner.generate_ed25519()]
        self.root.add_key(self.signers[role][0].public_key, role)
        self.root.version += 1
        signers = {signer.public_key.keyid: signer for signer in (*old_root, *self.signers["root"])}
        self.files[f"metadata/{self.root.version}.root.json"] = self.signed("root", signers.values())

    async def fetch_bytes(self, name: str, *, limit_bytes: int, deadline_s: float = 30) -> bytes:
        self.asked.append(name)
        if self.away:
            raise LinkError("the broker is away", hint="wait")
        if name not in self.files:
            raise NotFoundError(f"the sender does not have {name}")
        return self.files[name]
