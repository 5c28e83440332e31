"""Devices, and what each of them should be."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from edgert.errors import UsageError
from ota.store.models import AssignmentRow, BundleRow, DeviceRow

__all__ = ["assign", "every", "find", "get", "names", "names_of_model", "of_model", "worn"]


def find(session: Session, device: str) -> DeviceRow | None:
    """The device, or None."""
    return session.get(DeviceRow, device)


def get(session: Session, device: str) -> DeviceRow:
    """The device.

    Raises:
        UsageError: it is not enrolled.
    """
    row = find(session, device)
    if row is None:
        raise UsageError(f"there is no device {device!r}", hint="see `edgert ota devices`")
    return row


def every(session: Session) -> Sequence[DeviceRow]:
    """All devices, by name."""
    return session.scalars(select(DeviceRow).order_by(DeviceRow.id)).all()


def names(session: Session) -> frozenset[str]:
    """Names of all devices."""
    return frozenset(session.scalars(select(DeviceRow.id)))


def of_model(session: Session, bundle_digest: str) -> Sequence[DeviceRow]:
    """Devices that should serve the bundle with that digest."""
    query = (
        select(DeviceRow)
        .join(AssignmentRow, AssignmentRow.device == DeviceRow.id)
        .join(BundleRow, BundleRow.id == AssignmentRow.bundle_id)
        .where(BundleRow.digest == bundle_digest)
    )
    return session.scalars(query.order_by(DeviceRow.id)).all()


def names_of_model(session: Session, bundle_digest: str) -> frozenset[str]:
    """Names of the devices that should serve the bundle with that digest."""
    query = select(AssignmentRow.device).join(BundleRow, BundleRow.id == AssignmentRow.bundle_id)
    return frozenset(session.scalars(query.where(BundleRow.digest == bundle_digest)))


def worn(session: Session, oldest: datetime) -> Sequence[DeviceRow]:
    """Devices whose wanted state has changed since it was last signed, or was signed before `oldest`."""
    changed = DeviceRow.revision != DeviceRow.envelope_revision
    return session.scalars(select(DeviceRow).where(or_(changed, DeviceRow.envelope_issued < oldest))).all()


def assign(session: Session, device: DeviceRow, model: str, bundle: BundleRow | None) -> int:
    """Make `bundle` what the device should serve as `model` (None takes the model away); returns the new revision."""
    row = next((row for row in device.assignments if row.model == model), None)
    if row is None and bundle is not None:
        device.assignments.append(AssignmentRow(device=device.id, model=model, bundle=bundle))
    elif row is not None and bundle is not None:
        row.bundle = bundle
    elif row is not None:
        device.assignments.remove(row)
    device.revision += 1
    session.flush()
    return device.revision
