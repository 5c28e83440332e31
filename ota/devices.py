"""A device as the server sees it: what it should be (signed for it alone), what it said it is."""

from datetime import datetime, timedelta
from typing import Any

from edgert.envelope import DESIRED_TYPE, SigningKey, sign
from edgert.wire.twin import Assignment, Desired, Reported
from ota.store import DeviceRow

__all__ = ["describe", "desired", "note_state", "reported", "sign_desired"]


def desired(row: DeviceRow, now: datetime, lifetime: timedelta) -> Desired:
    """What the device should be, good from now on."""
    models = tuple(
        Assignment(
            model=part.model,
            version=part.bundle.release.version,
            target=part.bundle.target,
            digest=part.bundle.digest,
            size_bytes=part.bundle.size_bytes,
        )
        for part in row.assignments
    )
    return Desired(device=row.id, revision=row.revision, issued=now, expires=now + lifetime, models=models)


def sign_desired(row: DeviceRow, key: SigningKey, now: datetime, lifetime: timedelta) -> bytes:
    """Sign what the device should be and note it in its row; the envelope."""
    row.envelope = sign(DESIRED_TYPE, desired(row, now, lifetime).encode(), key)
    row.envelope_revision, row.envelope_issued = row.revision, now
    return row.envelope


def note_state(row: DeviceRow, state: Reported, now: datetime) -> None:
    """Keep what the device says it is; who it is comes from the topic, not from the message."""
    row.reported = state.model_copy(update={"device": row.id}).model_dump(mode="json")
    row.seen = now


def reported(row: DeviceRow) -> Reported | None:
    """What the device said last, or None before it said anything."""
    return None if row.reported is None else Reported.model_validate(row.reported)


def describe(row: DeviceRow) -> dict[str, Any]:
    """One device for `--json`."""
    state = reported(row)
    return {
        "device": row.id,
        "profile": row.profile,
        "online": row.online,
        "seen": None if row.seen is None else row.seen.isoformat(),
        "certificate_expires": row.certificate_expires.isoformat(),
        "revision": row.revision,
        "accepted_revision": 0 if state is None else state.revision,
        "desired": {part.model: part.bundle.release.version for part in row.assignments},
        "models": {} if state is None else {name: part.model_dump() for name, part in state.models.items()},
        "agent": "" if state is None else state.agent,
        "endpoint": "" if state is None else state.endpoint,
        "received_bytes": 0 if state is None else state.received_bytes,
        "sent_bytes": 0 if state is None else state.sent_bytes,
    }
