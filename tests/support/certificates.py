"""A certificate authority for one test, and a Mosquitto configuration that trusts it."""

import getpass
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from edgert.identity import Authority
from edgert.wire.transports.base import Broker

__all__ = ["Certificates"]


@dataclass(frozen=True, slots=True)
class Certificates:
    """Everything lies in `folder`: ``ca.pem``, ``broker.pem``, ``broker.key``, ``<client>.pem``, ``<client>.key``."""

    folder: Path
    authority: Authority

    @classmethod
    def make(cls, folder: Path, hosts: tuple[str, ...] = ("127.0.0.1", "localhost")) -> "Certificates":
        """A new authority, and a certificate for a broker reached under `hosts`."""
        folder.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC)
        authority = Authority.create("test fleet", now)
        key, certificate = authority.issue_server(list(hosts), now, 10)
        (folder / "ca.pem").write_bytes(authority.certificate)
        (folder / "broker.key").write_bytes(key)
        (folder / "broker.pem").write_bytes(certificate)
        return cls(folder, authority)

    def broker(self, name: str, port: int, host: str = "127.0.0.1") -> Broker:
        """How the client `name` reaches the broker; its certificate is made on first use."""
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        if not certificate.exists():
            made = self.authority.issue_client(name, datetime.now(UTC), 10)
            key.write_bytes(made[0])
            certificate.write_bytes(made[1])
        return Broker(host, port, name, self.folder / "ca.pem", certificate, key)

    def config(self, acl: str = "pattern readwrite #\n") -> Path:
        """A Mosquitto configuration: TLS, client certificates, the common name is user and client id."""
        (self.folder / "acl").write_text(acl, encoding="utf-8")
        path = self.folder / "template.conf"
        path.write_text(_CONFIG.format(folder=self.folder, user=getpass.getuser()), encoding="utf-8")
        return path


_CONFIG = """\
user {user}
listener @PORT@ 127.0.0.1
set_tcp_nodelay true
persistence false
log_dest stderr
cafile {folder}/ca.pem
certfile {folder}/broker.pem
keyfile {folder}/broker.key
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
use_username_as_clientid true
acl_file {folder}/acl
"""
