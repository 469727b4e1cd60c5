"""The built-in certificate authority for agents.

One P-256 root per installation, in the data folder; it signs the server's certificate of the agents' port and each
host's client certificate. A host's key never leaves the host: it sends a signing request.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from waybill.core.errors import InvalidInputError
from waybill.infra.keys import Keys

ROOT_DAYS = 3650
LEAF_DAYS = 825
SKEW = dt.timedelta(hours=25)
"""Certificates begin that long ago, so that a host whose clock is behind can still connect."""


class Authority:
    """The root: made at first use, then read from the data folder.

    Args:
        keys: Where ``ca-root.key`` and ``ca-root.pem`` stand.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        key, certificate = keys.get("ca-root.key"), keys.get("ca-root.pem")
        if key is None or certificate is None:
            key, certificate = _new_root()
            keys.put("ca-root.key", key)
            keys.put("ca-root.pem", certificate)
        loaded = serialization.load_pem_private_key(key, password=None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)  # noqa: S101 - we wrote it
        self._key = loaded
        self._certificate = x509.load_pem_x509_certificate(certificate)
        self.pem = certificate.decode()

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the root certificate's DER, which enrolment tokens carry."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    def sign_host(self, name: str, csr: str) -> tuple[str, str]:
        """A client certificate for a host: (PEM, serial in hex). The name is ours, whatever the request says.

        Raises:
            InvalidInputError: The request is malformed, not signed by its own key, or of a weak key.
        """
        try:
            request = x509.load_pem_x509_csr(csr.encode())
            sound = request.is_signature_valid
            public = request.public_key()
        except (ValueError, TypeError) as error:
            raise InvalidInputError(f"the certificate request is malformed: {error}") from error
        if not sound or not isinstance(public, ec.EllipticCurvePublicKey):
            raise InvalidInputError("the certificate request must be signed by its own P-256 key.")
        certificate = (
            self._leaf(name, public)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _pem(certificate), f"{certificate.serial_number:x}"

    def server_files(self, urls: list[str]) -> tuple[str, str]:
        """Paths of certificate and key of the agents' port, fresh for these addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = []
        for host in dict.fromkeys([*(urlsplit(url).hostname or "" for url in urls), "localhost", "127.0.0.1", "::1"]):
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        certificate = (
            self._leaf("waybill server", key.public_key())
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self._keys.put("tls-agents.pem", _pem(certificate).encode())
        self._keys.put("tls-agents.key", _private(key))
        return str(self._keys.path("tls-agents.pem")), str(self._keys.path("tls-agents.key"))

    @property
    def root_file(self) -> str:
        """Path of the root certificate."""
        return str(self._keys.path("ca-root.pem"))

    def _leaf(self, name: str, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(now + dt.timedelta(days=LEAF_DAYS))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )


def _new_root() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Waybill agents")])
    now = dt.datetime.now(dt.UTC)
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + dt.timedelta(days=ROOT_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _private(key), _pem(certificate).encode()


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
