"""One signed form for everything the fleet says: DSSE, with the payload's type inside the signature.

Source: https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
The keys that may sign are named in TUF-signed metadata (see `ota.repository` and `agents.update.trust`).
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgert.errors import MessageError, RefusedError

__all__ = ["DESIRED_TYPE", "JOB_TYPE", "SigningKey", "key_id", "sign", "verify"]

DESIRED_TYPE = "application/vnd.edgert.desired.v1+json"
JOB_TYPE = "application/vnd.edgert.job.v1+json"


class _Signature(BaseModel):
    model_config = ConfigDict(extra="ignore")
    keyid: str
    sig: str


class _Envelope(BaseModel):
    model_config = ConfigDict(extra="ignore")
    payload: str
    payload_type: str = Field(alias="payloadType")
    signatures: list[_Signature] = Field(min_length=1, max_length=16)


class SigningKey:
    """An Ed25519 key that signs envelopes; the private half never leaves the object except by `private_bytes`."""

    def __init__(self, private_bytes: bytes | None = None) -> None:
        """Args: private_bytes: 32 bytes made by `private_bytes` before; None makes a new key."""
        self._key = (
            Ed25519PrivateKey.generate()
            if private_bytes is None
            else Ed25519PrivateKey.from_private_bytes(private_bytes)
        )

    def private_bytes(self) -> bytes:
        """The 32 secret bytes, for a key file."""
        return self._key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())

    def public_bytes(self) -> bytes:
        """The 32 public bytes."""
        return self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, data: bytes) -> bytes:
        """The 64-byte signature of `data`."""
        return self._key.sign(data)


def key_id(public_bytes: bytes) -> str:
    """How envelopes and metadata call a public key: the SHA-256 of its 32 bytes, in hex."""
    return hashlib.sha256(public_bytes).hexdigest()


def sign(payload_type: str, payload: bytes, key: SigningKey) -> bytes:
    """The envelope around `payload`, as JSON."""
    signature = _Signature(
        keyid=key_id(key.public_bytes()), sig=base64.b64encode(key.sign(_to_sign(payload_type, payload))).decode()
    )
    envelope = _Envelope(payload=base64.b64encode(payload).decode(), payloadType=payload_type, signatures=[signature])
    return envelope.model_dump_json(by_alias=True).encode()


def verify(envelope: bytes, payload_type: str, keys: Mapping[str, bytes]) -> bytes:
    """The payload, if one of `keys` signed it as that type.

    Args:
        keys: 32 public bytes by `key_id`.

    Raises:
        MessageError: not an envelope.
        RefusedError: no known key signed it, or it is of another type.
    """
    try:
        parsed = _Envelope.model_validate_json(envelope)
        payload = base64.b64decode(parsed.payload, validate=True)
        signatures = [(row.keyid, base64.b64decode(row.sig, validate=True)) for row in parsed.signatures]
    except (ValidationError, binascii.Error, ValueError) as e:
        raise MessageError("not a signed envelope") from e
    if parsed.payload_type != payload_type:
        raise RefusedError(f"the envelope holds {parsed.payload_type[:80]!r}, expected {payload_type!r}")
    for keyid, signature in signatures:
        if keyid in keys and key_id(keys[keyid]) == keyid:
            try:
                Ed25519PublicKey.from_public_bytes(keys[keyid]).verify(signature, _to_sign(payload_type, payload))
            except (InvalidSignature, ValueError):
                continue
            return payload
    raise RefusedError("no trusted key signed the envelope", hint="the fleet's keys are named in its TUF metadata")


def _to_sign(payload_type: str, payload: bytes) -> bytes:
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
