"""The twin of a device: `Desired` is what it should be, `Reported` is what it says it is.

`Desired` travels in an envelope (`edgert.envelope`, type DESIRED_TYPE) signed by the fleet's assignment key, so that
a hostile broker can neither forge, replay to another device, nor take back an assignment.
"""

from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, Field

from edgert.errors import RefusedError
from edgert.manifest import Digest, Name
from edgert.wire.messages.base import Count, Message, Text

__all__ = ["Assignment", "Desired", "ModelState", "Phase", "Reported", "accept"]

Phase = Literal[
    "IDLE", "CHECK", "PLAN", "DOWNLOAD", "VERIFY", "STAGE", "TRIAL", "SWITCH", "COMMIT", "ROLLBACK", "FAILED"
]
"""Where a device's update of one model stands; IDLE = nothing to do, FAILED = refused or rolled back, see `error`."""


class Assignment(Message):
    """One model a device should serve.

    Args:
        model: name of the model.
        version: of the release.
        target: path of the bundle's image among the TUF targets.
        digest: of the bundle (its OCI image manifest).
        size_bytes: of the image manifest.
    """

    model: Name
    version: Count = Field(ge=1)
    target: str = Field(max_length=300)
    digest: Digest
    size_bytes: Count = Field(ge=1, le=4 << 20)


class Desired(Message):
    """What a device should be.

    Args:
        device: the only device it is meant for.
        revision: grows with every change; a smaller one is never accepted.
        issued, expires: it counts only between them.
        models: everything the device should serve.
    """

    device: Name
    revision: Count = Field(ge=1)
    issued: AwareDatetime
    expires: AwareDatetime
    models: tuple[Assignment, ...]


class ModelState(Message):
    """One model on a device.

    Args:
        version, digest: what answers now; 0 and None before the first.
        slot: A, B, or empty before the first.
        phase: where the update stands.
        target_version: what it is being updated to, 0 when nothing is under way.
        error, hint: why the last update failed; empty when it did not.
    """

    version: Count = 0
    digest: Digest | None = None
    slot: Literal["A", "B", ""] = ""
    phase: Phase = "IDLE"
    target_version: Count = 0
    error: Text = ""
    hint: Text = ""


class Reported(Message):
    """What a device says it is.

    Args:
        agent: version of EdgeRT on the device.
        profile: name of its profile.
        revision: of the last `Desired` it accepted.
        endpoint: where it answers inference requests on the device itself.
        received_bytes, sent_bytes: MQTT payload bytes since the agent started.
    """

    device: Name
    agent: Text
    profile: Name
    revision: Count = 0
    endpoint: Text = ""
    models: dict[Name, ModelState] = Field(default_factory=dict)
    free_bytes: Count = 0
    received_bytes: Count = 0
    sent_bytes: Count = 0


def accept(desired: Desired, *, device: str, revision: int, now: datetime) -> Desired:
    """`desired` again, if this device may follow it.

    Args:
        device: who we are.
        revision: of the last one we accepted; the same one again is accepted.
        now: proven or system time.

    Raises:
        RefusedError: foreign, older than what we have, expired, or issued after its own end. One that was issued later
            than `now` is accepted: a box without a clock of its own wakes up in the past.
    """
    if desired.device != device:
        raise RefusedError(f"the assignment is for device {desired.device}, this is {device}")
    if desired.revision < revision:
        raise RefusedError(f"the assignment has revision {desired.revision}, we follow {revision} already")
    if now >= desired.expires:
        raise RefusedError(
            f"the assignment expired at {desired.expires.isoformat()}", hint="is this box's clock right?"
        )
    if desired.issued > desired.expires:
        raise RefusedError("the assignment was issued after its own end")
    return desired
