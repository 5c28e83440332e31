"""Who a box is: keys made on the box, certificates given by the fleet's certificate authority.

Both halves live here: a request and the certificate made from it. All keys are ECDSA P-256 (widely supported by
brokers and secure elements); all files are PEM.
"""

import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgert.errors import RefusedError, UsageError
from edgert.values import digest

__all__ = [
    "Authority",
    "certificate_expiry",
    "certificate_name",
    "check_certificate",
    "make_key",
    "make_request",
    "request_key_digest",
]

_BACKDATE = timedelta(hours=1)


def make_key() -> bytes:
    """A new private key, PEM."""
    return _private_pem(ec.generate_private_key(ec.SECP256R1()))


def make_request(key: bytes, name: str) -> bytes:
    """A certificate signing request for `name`, PEM, proving possession of `key` (PEM)."""
    request = x509.CertificateSigningRequestBuilder().subject_name(_subject(name))
    return request.sign(_load(key), hashes.SHA256()).public_bytes(Encoding.PEM)


def request_key_digest(request: bytes) -> str:
    """Digest of the public key in a request: tells a repeated request from a second one.

    Raises:
        RefusedError: not a request, not a P-256 key, or its signature does not fit.
    """
    return digest(_checked(request).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def certificate_name(certificate: bytes) -> str:
    """The common name in a certificate (PEM)."""
    (name,) = x509.load_pem_x509_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)


def check_certificate(certificate: bytes, *, authority: bytes, key: bytes, name: str) -> None:
    """Refuse a certificate (PEM) that is not ours.

    Args:
        authority: certificate of the fleet's authority, PEM.
        key: our private key, PEM.
        name: what we must be called in it.

    Raises:
        RefusedError: not a certificate, not signed by the authority, for another key, or for another name.
    """
    try:
        ours = x509.load_pem_x509_certificate(certificate)
        ours.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    except (ValueError, TypeError, InvalidSignature) as e:
        raise RefusedError("the certificate was not made by the fleet's authority") from e
    if ours.public_key() != _load(key).public_key():
        raise RefusedError("the certificate is for another key than ours")
    if certificate_name(certificate) != name:
        raise RefusedError(f"the certificate is for {certificate_name(certificate)[:80]!r}, this box is {name!r}")


def certificate_expiry(certificate: bytes) -> datetime:
    """When a certificate (PEM) ends."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


@dataclass(frozen=True, slots=True)
class Authority:
    """The fleet's certificate authority.

    Args:
        certificate: its own certificate, PEM.
        key: its private key, PEM.
    """

    certificate: bytes
    key: bytes

    @classmethod
    def create(cls, name: str, now: datetime, days: int = 3650) -> "Authority":
        """A new self-signed authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(_subject(name), now, days)
            .issuer_name(_subject(name))
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return cls(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM), _private_pem(key))

    def sign_request(self, request: bytes, name: str, now: datetime, days: int) -> bytes:
        """A client certificate for the key in `request`; the name is ours, never the one asked for.

        Raises:
            RefusedError: not a request, not a P-256 key, or its signature does not fit.
        """
        return self._issue(_checked(request).public_key(), name, now, days, ExtendedKeyUsageOID.CLIENT_AUTH, ())

    def issue_client(self, name: str, now: datetime, days: int) -> tuple[bytes, bytes]:
        """Key and client certificate for `name`, both PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._issue(key.public_key(), name, now, days, ExtendedKeyUsageOID.CLIENT_AUTH, ())
        return _private_pem(key), certificate

    def issue_server(self, hosts: list[str], now: datetime, days: int) -> tuple[bytes, bytes]:
        """Key and certificate of a TLS server that is reached under `hosts` (names or addresses), both PEM."""
        if not hosts:
            raise UsageError("a server certificate needs at least one host name or address")
        key = ec.generate_private_key(ec.SECP256R1())
        names = [_general_name(host) for host in hosts]
        certificate = self._issue(key.public_key(), hosts[0], now, days, ExtendedKeyUsageOID.SERVER_AUTH, names)
        return _private_pem(key), certificate

    def _issue(
        self,
        public_key: object,
        name: str,
        now: datetime,
        days: int,
        usage: x509.ObjectIdentifier,
        names: list[x509.GeneralName] | tuple[()],
    ) -> bytes:
        if not isinstance(public_key, ec.EllipticCurvePublicKey) or public_key.curve.name != "secp256r1":
            raise RefusedError("the request holds no P-256 key")
        own = x509.load_pem_x509_certificate(self.certificate)
        own_key = _load(self.key).public_key()
        builder = (
            _builder(_subject(name), now, days)
            .issuer_name(own.subject)
            .public_key(public_key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own_key), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(_load(self.key), hashes.SHA256()).public_bytes(Encoding.PEM)


def _builder(subject: x509.Name, now: datetime, days: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + timedelta(days=days))
    )


def _checked(request: bytes) -> x509.CertificateSigningRequest:
    try:
        parsed = x509.load_pem_x509_csr(request)
        parsed.public_key()
        fits = parsed.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as e:
        raise RefusedError("not a certificate request", hint="send a request for an ECDSA P-256 key") from e
    if not fits:
        raise RefusedError("the signature of the certificate request does not fit its key")
    return parsed


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _load(key: bytes) -> ec.EllipticCurvePrivateKey:
    loaded = load_pem_private_key(key, password=None)
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise UsageError("not an ECDSA key")
    return loaded


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
