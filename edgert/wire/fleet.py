"""What a fleet gives to a box: the kit it enrols with, the names of signed things, the keys that may speak for it."""

import base64
from typing import Final

from pydantic import Field

from edgert.envelope import key_id
from edgert.manifest import Name
from edgert.wire.messages.base import Message

__all__ = ["FLEET_KEYS", "FleetKeys", "Kit", "bundle_target"]

FLEET_KEYS: Final = "fleet/keys.json"
"""The TUF target that names the keys of envelopes."""


class Kit(Message):
    """``kit.json`` of an enrolment kit; beside it lie ``ca.pem``, ``claim.pem``, ``claim.key`` and ``root.json``.

    Args:
        host, port: of the broker.
        claim: name of the claim = common name of ``claim.pem``.
        device: the name this box will get.
    """

    host: str
    port: int = Field(ge=1, le=65535)
    claim: Name
    device: Name


class FleetKeys(Message):
    """Content of the TUF target `FLEET_KEYS`: base64 of 32-byte Ed25519 public keys, by what they may sign."""

    assignment: tuple[str, ...]
    federation: tuple[str, ...]

    def for_assignment(self) -> dict[str, bytes]:
        """Keys that may sign a `Desired`, by key id, as `edgert.envelope.verify` takes them."""
        return _by_id(self.assignment)

    def for_federation(self) -> dict[str, bytes]:
        """Keys that may sign the announcement of a federated job."""
        return _by_id(self.federation)


def bundle_target(model: str, version: int, profile: str) -> str:
    """The TUF target path of a release's bundle for one profile; its content is the bundle's OCI image manifest."""
    return f"models/{model}/{version}/{profile}.json"


def _by_id(keys: tuple[str, ...]) -> dict[str, bytes]:
    raw = [base64.b64decode(key) for key in keys]
    return {key_id(key): key for key in raw}
