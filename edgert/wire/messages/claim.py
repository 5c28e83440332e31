"""Enrolment: a box proves that it holds a claim certificate and gets a certificate for a key it made itself."""

from pydantic import Field

from edgert.manifest import Name
from edgert.wire.messages.base import Message, Text

__all__ = ["ClaimReply", "ClaimRequest"]


class ClaimRequest(Message):
    """Up, on ``claim/{name}/request``: the certificate request of the box, PEM, and what kind of box it is."""

    request: str = Field(max_length=8192)
    profile: Name


class ClaimReply(Message):
    """Down, on ``claim/{name}/reply``: the certificate, or why there is none.

    Args:
        device: the name the fleet gave the box = common name of the certificate.
        certificate: PEM; empty when refused.
        error, hint: why it was refused.
    """

    device: str = ""
    certificate: str = ""
    error: Text = ""
    hint: Text = ""
