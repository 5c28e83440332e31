"""What the fleet's server remembers: `database` (transactions), `models` (tables), one module of queries per noun.

The only package that knows SQLAlchemy; everyone else opens a transaction with `Database.read` or `Database.write`
and hands its `Session` to the functions here.
"""

from ota.store.database import Database, Session
from ota.store.models import (
    AssignmentRow,
    AuditRow,
    BundleRow,
    ClaimRow,
    DeviceRow,
    JobRow,
    ReleaseRow,
    RolloutDeviceRow,
    RolloutRow,
)

__all__ = [
    "AssignmentRow",
    "AuditRow",
    "BundleRow",
    "ClaimRow",
    "Database",
    "DeviceRow",
    "JobRow",
    "ReleaseRow",
    "RolloutDeviceRow",
    "RolloutRow",
    "Session",
]
