"""One fleet, opened: everything an operation needs, and nothing that decides."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from edgert.clock import Clock, SystemClock
from edgert.errors import StoreError, UsageError
from edgert.files import write_durable
from edgert.identity import Authority
from edgert.store import Store
from ota import broker, keys
from ota.broker import SERVER_NAME
from ota.config import Home, Settings
from ota.repository import Repository
from ota.sources import Sources
from ota.store import Database

__all__ = ["Fleet", "create"]

_PRIVATE = ("keys", "tuf/metadata", "ca", "store", "sources", "updates", "work")


@dataclass(frozen=True, slots=True)
class Fleet:
    """The parts of a fleet's home.

    Args:
        home: names of the folders, and the settings.
        clock: for signatures and rows.
        database: devices, releases, rollouts, jobs.
        store: blobs that devices may fetch.
        sources: what rebuilds need.
        repository: what is signed.
    """

    home: Home
    clock: Clock
    database: Database
    store: Store
    sources: Sources
    repository: Repository

    @classmethod
    def open(cls, root: Path, clock: Clock | None = None) -> Self:
        """The fleet in a home folder.

        Raises:
            UsageError: there is none.
            ConfigError: its settings have a wrong or unknown key.
        """
        home, used = Home.open(root), clock or SystemClock()
        return cls(
            home=home,
            clock=used,
            database=Database(home.database),
            store=Store(home.store),
            sources=Sources(home.sources),
            repository=Repository(home, used),
        )

    def authority(self) -> Authority:
        """The certificate authority, with its private key.

        Raises:
            StoreError: its files are missing.
        """
        folder = self.home.authority
        try:
            return Authority((folder / "ca.pem").read_bytes(), (folder / "ca.key").read_bytes())
        except OSError as e:
            raise StoreError(
                f"cannot read the certificate authority in {folder}: {e.strerror}",
                hint="restore the fleet's home from a backup",
            ) from e

    def close(self) -> None:
        """Close the database."""
        self.database.close()


def create(root: Path, settings: Settings, clock: Clock) -> Fleet:
    """A new fleet: keys, signed metadata, certificate authority, broker configuration.

    The settings are written last: a home without them was not finished, and is refused.

    Raises:
        UsageError: the folder is not empty, or the broker's user cannot reach it.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(f"{root} is not empty", hint="give a new folder")
    user = broker.choose_user(settings.broker_user, root)
    home = Home(root.resolve(), settings.model_copy(update={"broker_user": user}))
    try:
        home.root.mkdir(parents=True, exist_ok=True)
        home.root.chmod(0o700 if user in ("", "root") else 0o711)
        for name in _PRIVATE:
            (home.root / name).mkdir(parents=True, mode=0o700)
    except OSError as e:
        raise StoreError(f"cannot make {home.root}: {e.strerror}", hint="give a folder that you may write") from e
    keys.create(home.keys)
    content = Repository(home, clock).create()
    Store(home.store).add(content)
    _certify(home, clock)
    Database(home.database).close()
    home.save_settings()
    return Fleet.open(root, clock)


def _certify(home: Home, clock: Clock) -> None:
    now, days = clock.now(), home.settings.service_days
    authority = Authority.create("edgert-fleet", now, days)
    write_durable(home.authority / "ca.pem", authority.certificate)
    write_durable(home.authority / "ca.key", authority.key, mode=0o600)
    key, certificate = authority.issue_client(SERVER_NAME, now, days)
    write_durable(home.authority / "server.pem", certificate)
    write_durable(home.authority / "server.key", key, mode=0o600)
    hosts = list(dict.fromkeys([home.settings.host, home.settings.server_host, "localhost", "127.0.0.1"]))
    key, certificate = authority.issue_server(hosts, now, days)
    broker.install(home, ca=authority.certificate, certificate=certificate, key=key)
