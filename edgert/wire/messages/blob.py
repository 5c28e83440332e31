"""One blob protocol both ways: the receiver asks for absolute ranges, the sender answers with frames.

Download: the device sends :class:`Get` on ``d/{id}/get`` (QoS 1), the server answers on ``d/{id}/data`` (QoS 0).
Upload: the server sends :class:`Get` on ``d/{id}/ack`` (QoS 1), the device answers on ``d/{id}/put`` (QoS 0).
Identity is the digest; nothing is pushed; what a lossy way loses is asked for again. :class:`Done` ends an upload,
sent only after the bytes are durable.

A frame is ``version u8 | status u8 | transfer u64 | offset u64 | total u64 | bytes``, big-endian.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from pydantic import Field

from edgert.errors import MessageError
from edgert.wire.messages.base import Message

__all__ = ["CHUNK_BYTES", "FRAME_HEADER_BYTES", "WINDOW_BYTES", "Done", "Frame", "Get", "Status"]

CHUNK_BYTES = 256 << 10
WINDOW_BYTES = 2 << 20
_HEADER = struct.Struct(">BBQQQ")
FRAME_HEADER_BYTES = _HEADER.size
_VERSION = 1


class Status(IntEnum):
    """How the sender answers."""

    OK = 0
    NOT_FOUND = 1
    BAD_RANGE = 2
    BUSY = 3


class Get(Message):
    """Send me this range.

    Args:
        transfer: chosen by the receiver, comes back in every frame.
        name: ``sha256:<hex>`` of a blob, or ``metadata/<file>`` for TUF metadata.
        offset, length: absolute range in bytes; at most one chunk.
    """

    transfer: int = Field(ge=0, lt=1 << 64)
    name: str = Field(min_length=1, max_length=300)
    offset: int = Field(ge=0, lt=1 << 63)
    length: int = Field(ge=1, le=CHUNK_BYTES)


class Done(Message):
    """The upload with that digest is durable here; stop offering it."""

    name: str = Field(min_length=1, max_length=300)


@dataclass(frozen=True, slots=True)
class Frame:
    """A range of a blob, or why there is none.

    Args:
        total: size of the whole blob in bytes.
    """

    transfer: int
    status: Status
    offset: int
    total: int
    data: bytes

    def encode(self) -> bytes:
        """The bytes on the wire."""
        return _HEADER.pack(_VERSION, self.status, self.transfer, self.offset, self.total) + self.data

    @classmethod
    def decode(cls, payload: bytes) -> "Frame":
        """The frame in `payload`.

        Raises:
            MessageError: not a frame, or it claims bytes past the end of the blob.
        """
        if not FRAME_HEADER_BYTES <= len(payload) <= FRAME_HEADER_BYTES + CHUNK_BYTES:
            raise MessageError(f"a frame of {len(payload)} bytes is too short or too long")
        version, status, transfer, offset, total = _HEADER.unpack_from(payload)
        data = payload[FRAME_HEADER_BYTES:]
        if version != _VERSION or status not in Status.__members__.values():
            raise MessageError(f"frame version {version}, status {status}: not understood")
        if offset + len(data) > total:
            raise MessageError("the frame ends past the end of its blob")
        return cls(transfer, Status(status), offset, total, data)
