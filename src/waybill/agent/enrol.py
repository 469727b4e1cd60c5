"""Enrolment: a host makes its own keys, proves that it holds a token, and gets a certificate back.

The token's secret never travels, the authority is checked against the fingerprint in the token before anything of the
answer is believed, and no private key leaves the host. ``cryptography`` is imported here alone, so that the running
agent does without it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os

import msgspec

from waybill.agent.facts import facts
from waybill.agent.state import Config, Home, write
from waybill.core.errors import ConflictError, InvalidInputError, NotFoundError, UnauthenticatedError
from waybill.wire.agent import Enrolled, Enrolment, Facts

PREFIX = "wbe1."


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """An enrolment token, ``wbe1.`` and base64url of this as JSON.

    Attributes:
        url: Public address of the server.
        id: Names the token.
        secret: Proves that the host holds it.
        ca: Hex SHA-256 of the authority's certificate (DER).
    """

    url: str
    id: str
    secret: str
    ca: str


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a host makes for itself: PEM of key and signing request, age identity and recipient."""

    key: str
    csr: str
    age: str
    recipient: str


def read_token(text: str) -> Token:
    """The token in a text.

    Raises:
        InvalidInputError: It is none.
    """
    try:
        if not text.startswith(PREFIX):
            raise ValueError(PREFIX)  # noqa: TRY301 - one sentence for all that can be wrong
        body = text.removeprefix(PREFIX).strip()
        token = msgspec.json.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)), type=Token)
        if len(bytes.fromhex(token.ca)) != 32 or not token.url.startswith(("http://", "https://")):
            raise ValueError(token.url)  # noqa: TRY301
    except (ValueError, binascii.Error, msgspec.DecodeError) as error:
        raise InvalidInputError(
            "this is no enrolment token.", "`waybill enroll` on the server's side prints one; copy all of it."
        ) from error
    return token


def write_token(token: Token) -> str:
    """The text form of a token."""
    return PREFIX + base64.urlsafe_b64encode(msgspec.json.encode(token)).decode().rstrip("=")


def make_identity(name: str) -> Identity:
    """Fresh keys of a host."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from waybill.vault import identity

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    age = identity.new()
    return Identity(
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
        csr=csr.public_bytes(serialization.Encoding.PEM).decode(),
        age=identity.write((age,), f"this host: {name}"),
        recipient=age.recipient,
    )


def request(token: Token, name: str, identity: Identity, facts: Facts) -> Enrolment:
    """What the host sends: all but the secret, and a proof that it holds it."""
    return Enrolment(
        token=token.id,
        name=name,
        csr=identity.csr,
        recipient=identity.recipient,
        proof=proof(token.secret, token.id, name, identity.csr, identity.recipient),
        facts=facts,
    )


def proof(secret: str, token: str, name: str, csr: str, recipient: str) -> str:
    """The HMAC of an enrolment, see ``wire.agent.Enrolment``."""
    key = hashlib.sha256(secret.encode()).digest()
    return hmac.new(key, f"{token}\0{name}\0{csr}\0{recipient}".encode(), "sha256").hexdigest()


def check_authority(enrolled: Enrolled, token: Token) -> None:
    """Refuse an answer whose authority is not the one that the token names.

    Raises:
        UnauthenticatedError: Somebody else answered.
    """
    import ssl

    try:
        der = ssl.PEM_cert_to_DER_cert(enrolled.ca.strip())
    except ValueError as error:
        raise InvalidInputError("the server's answer holds no certificate authority.") from error
    if not hmac.compare_digest(hashlib.sha256(der).hexdigest(), token.ca.lower()):
        raise UnauthenticatedError(
            f"{token.url} is not the server that made this token: its certificate authority has another fingerprint.",
            "Nothing was stored. Check the address, and who answers there.",
        )


def store(home: Home, enrolled: Enrolled, identity: Identity, allow: tuple[str, ...], *, accounts: bool) -> None:
    """Write the enrolled state folder; ``agent.toml`` last, since it makes it one.

    A host that is enrolled again keeps what its services need: the address, and below the new age identity the earlier
    ones, since what was sealed to them must still open after a reboot.
    """
    root_mode = 0o711 if os.geteuid() == 0 else 0o700
    home.root.mkdir(parents=True, exist_ok=True, mode=root_mode)
    home.root.chmod(root_mode)
    home.keys.mkdir(mode=0o700, exist_ok=True)
    earlier = home.keys / "age.key"
    ring = identity.age.strip() + "\n" + (earlier.read_text() if earlier.exists() else "")
    for name, content in (
        ("host.key", identity.key),
        ("host.crt", enrolled.certificate),
        ("ca.crt", enrolled.ca),
        ("age.key", ring),
        ("age.pub", identity.recipient + "\n"),
    ):
        write(home.keys / name, content, 0o600)
    (home.root / "server.json").unlink(missing_ok=True)
    address = ""
    with contextlib.suppress(InvalidInputError, NotFoundError):
        address = home.config().address
    servers = (enrolled.agents_url,)
    home.write_config(Config(host=enrolled.host, servers=servers, allow=allow, accounts=accounts, address=address))


def enrol(home: Home, text: str, *, name: str, allow: tuple[str, ...], force: bool, accounts: bool) -> Enrolled:
    """Enrol this host with the server that made the token.

    Raises:
        ConflictError: The folder is enrolled already.
        InvalidInputError: Token or allow list is none.
        UnauthenticatedError: Server or token is not genuine.
    """
    from waybill.infra.http import Api

    token = read_token(text)
    for pattern in allow:
        if pattern.count("/") != 1 or not all(pattern.split("/")):
            raise InvalidInputError(f"{pattern!r} is no SERVICE/ENVIRONMENT pattern.", "For example 'hello/*'.")
    if home.enrolled and not force:
        raise ConflictError(
            f"{home.root} is enrolled already, as {home.config().host}.", "--force enrols it anew, with new keys."
        )
    identity = make_identity(name)
    with Api(token.url) as api:
        answer = api.request("POST", "/api/enrol", request(token, name, identity, facts(home.root)))
    try:
        enrolled = msgspec.convert(answer, Enrolled)
    except msgspec.ValidationError as error:
        raise InvalidInputError(f"{token.url} did not answer like a Waybill server: {error}") from error
    check_authority(enrolled, token)
    store(home, enrolled, identity, allow, accounts=accounts)
    return enrolled
