"""The TUF repository of a fleet: what exists, signed so that nobody can forge, roll back, freeze or mix it.

Consistent snapshots: every file but ``timestamp.json`` carries its version in its name and never changes. A change
writes the new versioned files first and ``timestamp.json`` last, each atomically: a device that asks in between, or
after a power cut, sees the old state, complete.

Source: https://theupdateframework.github.io/specification/latest/
"""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from edgert.clock import Clock
from edgert.errors import StoreError, UsageError
from edgert.files import write_durable
from edgert.wire.fleet import FLEET_KEYS, FleetKeys
from ota import keys
from ota.config import Home, locked

__all__ = ["Repository", "Target"]

_Signed = TypeVar("_Signed", Root, Targets, Snapshot, Timestamp)
_SERIALIZER = JSONSerializer(compact=True)


@dataclass(frozen=True, slots=True)
class Target:
    """One signed thing: its path among the targets, the digest and the size of its content."""

    path: str
    digest: str
    size_bytes: int


class Repository:
    """The signed metadata in a fleet's home; safe against other processes and against power cuts.

    Args:
        home: of the fleet.
        clock: gives the times that are signed.
    """

    def __init__(self, home: Home, clock: Clock) -> None:
        self._home = home
        self._folder = home.metadata
        self._clock = clock

    def create(self) -> bytes:
        """Sign the first version of every role, with no targets but the fleet's envelope keys.

        Returns:
            The content of the target `FLEET_KEYS`, to be kept in the store.

        Raises:
            UsageError: there is a repository already.
        """
        if (self._folder / "timestamp.json").exists():
            raise UsageError(f"{self._folder} holds a repository already", hint="give a new folder")
        content = self._fleet_keys().encode()
        root = Root(expires=self._expiry(self._home.settings.root_days), consistent_snapshot=True)
        for role in keys.ROLES:
            root.add_key(keys.signer(self._home.keys, role).public_key, role)
        self._write(root, "1.root.json")
        targets = Targets(expires=self._expiry(self._home.settings.targets_days))
        targets.targets[FLEET_KEYS] = TargetFile.from_data(FLEET_KEYS, content, ["sha256"])
        snapshot = Snapshot(expires=self._expiry(self._home.settings.snapshot_days))
        timestamp = Timestamp(expires=self._expiry(self._home.settings.timestamp_days))
        self._write(targets, "1.targets.json")
        self._write(snapshot, "1.snapshot.json")
        self._write(timestamp, "timestamp.json")
        return content

    def root(self) -> bytes:
        """The newest root metadata, which a device is born with."""
        newest = max(self._folder.glob("*.root.json"), key=lambda path: int(path.name.split(".")[0]), default=None)
        if newest is None:
            raise StoreError(f"{self._folder} holds no root metadata", hint="restore the fleet's home from a backup")
        return newest.read_bytes()

    def targets(self) -> dict[str, Target]:
        """Everything that is signed at this moment, by path."""
        _, _, targets = self._current()
        return {
            path: Target(path, f"sha256:{file.hashes['sha256']}", file.length) for path, file in targets.targets.items()
        }

    def add(self, contents: Mapping[str, bytes]) -> None:
        """Sign new targets; the same content again changes nothing.

        Args:
            contents: by target path; the bytes themselves must already be in the store.

        Raises:
            StoreError: the disk failed or the repository is damaged; the old state is still served.
        """
        with locked(self._home.root, "repository"):
            timestamp, snapshot, targets = self._current()
            new = {path: TargetFile.from_data(path, data, ["sha256"]) for path, data in contents.items()}
            if all(targets.targets.get(path) == file for path, file in new.items()):
                return
            targets.targets.update(new)
            self._publish(timestamp, snapshot, targets)

    def refresh(self) -> bool:
        """Sign again whatever is past half of its life; returns whether anything was.

        Raises:
            StoreError: the disk failed or the repository is damaged; the old state is still served.
        """
        settings = self._home.settings
        with locked(self._home.root, "repository"):
            timestamp, snapshot, targets = self._current()
            if self._worn(targets.expires, settings.targets_days):
                self._publish(timestamp, snapshot, targets)
            elif self._worn(snapshot.expires, settings.snapshot_days):
                self._publish(timestamp, snapshot, None)
            elif self._worn(timestamp.expires, settings.timestamp_days):
                self._publish(timestamp, None, None)
            else:
                return False
        return True

    def _publish(self, timestamp: Timestamp, snapshot: Snapshot | None, targets: Targets | None) -> None:
        settings = self._home.settings
        if targets is not None and snapshot is not None:
            targets.version += 1
            targets.expires = self._expiry(settings.targets_days)
            self._write(targets, f"{targets.version}.targets.json")
            snapshot.meta["targets.json"] = MetaFile(version=targets.version)
        if snapshot is not None:
            snapshot.version += 1
            snapshot.expires = self._expiry(settings.snapshot_days)
            self._write(snapshot, f"{snapshot.version}.snapshot.json")
            timestamp.snapshot_meta = MetaFile(version=snapshot.version)
        timestamp.version += 1
        timestamp.expires = self._expiry(settings.timestamp_days)
        self._write(timestamp, "timestamp.json")

    def _current(self) -> tuple[Timestamp, Snapshot, Targets]:
        timestamp = self._read("timestamp.json", Timestamp)
        snapshot = self._read(f"{timestamp.snapshot_meta.version}.snapshot.json", Snapshot)
        targets = self._read(f"{snapshot.meta['targets.json'].version}.targets.json", Targets)
        return timestamp, snapshot, targets

    def _read(self, name: str, kind: Callable[..., _Signed]) -> _Signed:
        try:
            signed = Metadata.from_bytes((self._folder / name).read_bytes()).signed
        except (OSError, DeserializationError, RepositoryError) as e:
            raise StoreError(f"cannot read metadata {name}: {e}", hint="restore the fleet's home from a backup") from e
        if not isinstance(signed, kind):  # type: ignore[arg-type]
            raise StoreError(f"metadata {name} holds role {signed.type}", hint="restore the fleet's home from a backup")
        return signed  # type: ignore[return-value]

    def _write(self, signed: Root | Targets | Snapshot | Timestamp, name: str) -> None:
        metadata: Metadata[Any] = Metadata(signed)
        metadata.sign(keys.signer(self._home.keys, _role(signed)))
        write_durable(self._folder / name, metadata.to_bytes(_SERIALIZER))

    def _expiry(self, days: float) -> datetime:
        return (self._clock.now() + timedelta(days=days)).replace(microsecond=0)

    def _worn(self, expires: datetime, days: float) -> bool:
        return expires - self._clock.now() < timedelta(days=days / 2)

    def _fleet_keys(self) -> FleetKeys:
        def public(use: keys.EnvelopeUse) -> tuple[str, ...]:
            return (base64.b64encode(keys.envelope_key(self._home.keys, use).public_bytes()).decode(),)

        return FleetKeys(assignment=public("assignment"), federation=public("federation"))


def _role(signed: Root | Targets | Snapshot | Timestamp) -> keys.Role:
    roles: dict[type, keys.Role] = {Root: "root", Targets: "targets", Snapshot: "snapshot", Timestamp: "timestamp"}
    return roles[type(signed)]
