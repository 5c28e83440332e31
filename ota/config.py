"""The home folder of a fleet: where everything lies, and the settings an operator may change.

::

    ota.toml                     settings
    keys/                        private keys of the TUF roles and of envelopes (0600)
    tuf/metadata/                signed metadata, served to devices
    ca/                          the fleet's certificate authority, and the server's own certificate
    broker/                      mosquitto.conf, acl, certificate of the broker
    store/                       blobs of published bundles and of current weights, served to devices
    sources/<hex>.tar            what a rebuild needs; never served
    updates/                     what participants sent; never served
    work/                        scratch space of rebuilds
    fleet.db                     devices, releases, rollouts, jobs, audit
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgert.config import explain, read
from edgert.errors import ConfigError, UsageError
from edgert.files import write_durable

__all__ = ["Home", "Settings", "held", "is_held", "locked"]


class Settings(BaseModel):
    """What an operator may change, in ``ota.toml``.

    Args:
        host, port: where devices reach the broker.
        bind: address the broker listens on; empty = every address.
        connect_host: where the server itself reaches the broker.
        transport: plug-in of ``edgert/wire/transports``.
        broker_user: whom the broker becomes when it is started as root; empty = whoever starts it.
        root_days, targets_days, snapshot_days, timestamp_days: lifetime of TUF metadata.
        claim_days, device_days, service_days: lifetime of certificates.
        desired_days: lifetime of a signed assignment; it is signed again at half of it.
        gate_points: by how many points a rebuilt model may be less accurate than the release it came from.
        rebuild_timeout_s: for the conversion of one federated result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    host: str = Field(min_length=1)
    port: int = Field(default=8883, ge=1, le=65535)
    bind: str = ""
    connect_host: str = ""
    transport: str = "mqtt"
    broker_user: str = ""
    root_days: float = Field(default=365, gt=0)
    targets_days: float = Field(default=90, gt=0)
    snapshot_days: float = Field(default=30, gt=0)
    timestamp_days: float = Field(default=1, gt=0)
    claim_days: int = Field(default=30, ge=1)
    device_days: int = Field(default=365, ge=1)
    service_days: int = Field(default=3650, ge=1)
    desired_days: float = Field(default=7, gt=0)
    gate_points: float = Field(default=0.5, ge=0, le=100)
    rebuild_timeout_s: float = Field(default=1800, gt=0)

    @property
    def server_host(self) -> str:
        """Where the server itself reaches the broker."""
        return self.connect_host or self.host

    def to_toml(self) -> str:
        """The settings as a TOML file, every key written out."""
        rows = [f"{key} = {json.dumps(value)}" for key, value in self.model_dump().items()]
        return "# Settings of this fleet; see ota/README.md. Restart `edgert ota serve` after a change.\n" + "".join(
            f"{row}\n" for row in rows
        )


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of one fleet, by names.

    Args:
        root: the folder.
        settings: read once.
    """

    root: Path
    settings: Settings

    @classmethod
    def open(cls, root: Path) -> "Home":
        """The home in `root`.

        Raises:
            UsageError: there is none.
            ConfigError: its settings have a wrong or unknown key.
        """
        if not (root / "ota.toml").is_file():
            raise UsageError(f"{root} is not the home of a fleet", hint="make one with `edgert ota init`")
        return cls(root.resolve(), read(Settings, root / "ota.toml"))

    @classmethod
    def settings_of(cls, values: dict[str, object]) -> Settings:
        """Settings from loose values.

        Raises:
            ConfigError: a value is out of range.
        """
        try:
            return Settings.model_validate(values)
        except ValidationError as e:
            raise ConfigError(f"the settings do not fit: {explain(e)}", hint="see `edgert ota init --help`") from e

    def save_settings(self) -> None:
        """Write ``ota.toml``, the last step of making a home."""
        write_durable(self.root / "ota.toml", self.settings.to_toml().encode())

    @property
    def keys(self) -> Path:
        """Folder of private keys."""
        return self.root / "keys"

    @property
    def metadata(self) -> Path:
        """Folder of TUF metadata."""
        return self.root / "tuf" / "metadata"

    @property
    def authority(self) -> Path:
        """Folder of the certificate authority."""
        return self.root / "ca"

    @property
    def broker(self) -> Path:
        """Folder of the broker's files."""
        return self.root / "broker"

    @property
    def store(self) -> Path:
        """Folder of the blobs that devices may fetch."""
        return self.root / "store"

    @property
    def sources(self) -> Path:
        """Folder of the Sources."""
        return self.root / "sources"

    @property
    def updates(self) -> Path:
        """Folder of the updates that participants sent."""
        return self.root / "updates"

    @property
    def work(self) -> Path:
        """Folder for rebuilds."""
        return self.root / "work"

    @property
    def database(self) -> Path:
        """The database file."""
        return self.root / "fleet.db"


@contextmanager
def held(home: Path, name: str) -> Iterator[None]:
    """Hold the lock `name` of a home for as long as the block runs; another process shows by it that it is there.

    Raises:
        UsageError: another process holds it.
    """
    import fcntl

    with (home / f".{name}.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UsageError(f"the {name} of the fleet {home} is running already", hint="stop it first") from e
        yield


def is_held(home: Path, name: str) -> bool:
    """Whether a process holds the lock `name` of a home now."""
    try:
        with held(home, name):
            return False
    except UsageError:
        return True


@contextmanager
def locked(home: Path, name: str) -> Iterator[None]:
    """Hold the lock `name` of a home against every other process and thread; freed by the system when we die."""
    import fcntl

    with (home / f".{name}.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
