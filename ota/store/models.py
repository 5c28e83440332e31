"""The tables of a fleet's database."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, ForeignKey, TypeDecorator, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

__all__ = [
    "AssignmentRow",
    "AuditRow",
    "Base",
    "BundleRow",
    "ClaimRow",
    "DeviceRow",
    "JobRow",
    "ReleaseRow",
    "RolloutDeviceRow",
    "RolloutRow",
]


class _Utc(TypeDecorator[datetime]):
    """Aware times, kept as UTC."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """All tables."""

    type_annotation_map = {datetime: _Utc, dict[str, Any]: JSON}  # noqa: RUF012  (read by SQLAlchemy as written)


class DeviceRow(Base):
    """One enrolled box.

    `revision` is the revision of what it should be; `envelope*` is that, as it was last signed for it.
    """

    __tablename__ = "devices"
    id: Mapped[str] = mapped_column(primary_key=True)
    profile: Mapped[str]
    created: Mapped[datetime]
    certificate_expires: Mapped[datetime]
    online: Mapped[bool] = mapped_column(default=False)
    seen: Mapped[datetime | None] = mapped_column(default=None)
    reported: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    revision: Mapped[int] = mapped_column(default=0)
    envelope: Mapped[bytes | None] = mapped_column(default=None)
    envelope_revision: Mapped[int] = mapped_column(default=0)
    envelope_issued: Mapped[datetime | None] = mapped_column(default=None)
    assignments: Mapped[list["AssignmentRow"]] = relationship(
        order_by="AssignmentRow.model", cascade="all, delete-orphan", lazy="selectin"
    )


class AssignmentRow(Base):
    """One model a device should serve."""

    __tablename__ = "assignments"
    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    bundle_id: Mapped[int] = mapped_column(ForeignKey("bundles.id"))
    bundle: Mapped["BundleRow"] = relationship(lazy="joined")


class ClaimRow(Base):
    """One claim certificate; `key_digest` and `certificate` are set at first use, `spent` when the box reported."""

    __tablename__ = "claims"
    name: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(unique=True)
    created: Mapped[datetime]
    expires: Mapped[datetime]
    key_digest: Mapped[str | None] = mapped_column(default=None)
    certificate: Mapped[str | None] = mapped_column(default=None)
    spent: Mapped[bool] = mapped_column(default=False)


class ReleaseRow(Base):
    """One version of a model; `job` names the federated job it came from, empty when an operator made it."""

    __tablename__ = "releases"
    __table_args__ = (UniqueConstraint("model", "version"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str]
    version: Mapped[int]
    created: Mapped[datetime]
    job: Mapped[str] = mapped_column(default="")
    bundles: Mapped[list["BundleRow"]] = relationship(
        back_populates="release", order_by="BundleRow.profile", cascade="all, delete-orphan", lazy="selectin"
    )


class BundleRow(Base):
    """One release's bundle for one profile.

    `digest` and `size_bytes` are those of the image manifest; `source` is the digest of the Source, if it is kept;
    `metric` and `accuracy` come from the Source's report (empty and None without one).
    """

    __tablename__ = "bundles"
    __table_args__ = (UniqueConstraint("release_id", "profile"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    release_id: Mapped[int] = mapped_column(ForeignKey("releases.id"))
    profile: Mapped[str]
    digest: Mapped[str]
    size_bytes: Mapped[int]
    target: Mapped[str]
    source: Mapped[str | None] = mapped_column(default=None)
    metric: Mapped[str] = mapped_column(default="")
    accuracy: Mapped[float | None] = mapped_column(default=None)
    release: Mapped[ReleaseRow] = relationship(back_populates="bundles", lazy="joined")


class RolloutRow(Base):
    """How one release spreads."""

    __tablename__ = "rollouts"
    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str]
    version: Mapped[int]
    strategy: Mapped[str]
    status: Mapped[str]
    reason: Mapped[str] = mapped_column(default="")
    created: Mapped[datetime]
    devices: Mapped[list["RolloutDeviceRow"]] = relationship(
        order_by="RolloutDeviceRow.device", cascade="all, delete-orphan", lazy="selectin"
    )


class RolloutDeviceRow(Base):
    """One device in a rollout; `revision` is of the `Desired` that brought the release to it."""

    __tablename__ = "rollout_devices"
    rollout_id: Mapped[int] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    status: Mapped[str]
    previous_version: Mapped[int] = mapped_column(default=0)
    revision: Mapped[int] = mapped_column(default=0)
    phase: Mapped[str] = mapped_column(default="")
    done_bytes: Mapped[int] = mapped_column(default=0)
    total_bytes: Mapped[int] = mapped_column(default=0)
    error: Mapped[str] = mapped_column(default="")


class JobRow(Base):
    """One federated job: the plan as JSON, and the coordinator's state as JSON after its last step.

    `stopped_by` is who asked for its end; empty = nobody. `accuracy` is that of the rebuilt model, `release_version`
    and `rollout` what became of it; 0 = nothing yet.
    """

    __tablename__ = "jobs"
    name: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str]
    base_version: Mapped[int]
    created: Mapped[datetime]
    plan: Mapped[str]
    state: Mapped[str]
    phase: Mapped[str] = mapped_column(index=True)
    reason: Mapped[str] = mapped_column(default="")
    stopped_by: Mapped[str] = mapped_column(default="")
    accuracy: Mapped[float | None] = mapped_column(default=None)
    release_version: Mapped[int] = mapped_column(default=0)
    rollout: Mapped[int] = mapped_column(default=0)


class AuditRow(Base):
    """Who did what to what; only ever appended."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[datetime]
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[dict[str, Any]]
