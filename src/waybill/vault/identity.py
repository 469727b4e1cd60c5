"""age identities: the key of an environment, and what a host is told by.

An identity file is what ``age-keygen`` writes: comment lines and one secret key a line. A key ring holds the present
identity first and earlier ones after it, so that releases locked before a rotation still open.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

import msgspec
import pyrage  # type: ignore[import-untyped]
from pyrage import x25519

from waybill.core.errors import ForbiddenError, InvalidInputError

_LIMIT = 64 * 1024


class Identity(msgspec.Struct, frozen=True):
    """One X25519 key pair; its ``repr`` shows the public half only."""

    recipient: str
    secret: str

    def __repr__(self) -> str:
        return f"Identity({self.recipient})"


def new() -> Identity:
    """A fresh identity."""
    key = x25519.Identity.generate()
    return Identity(str(key.to_public()), str(key))


def parse(text: str, where: str) -> tuple[Identity, ...]:
    """The identities in an identity file's text, the present one first.

    Raises:
        InvalidInputError: A line is neither a comment nor a secret key, or there is no key at all.
    """
    found = []
    for number, line in enumerate(text[:_LIMIT].splitlines(), 1):
        secret = line.strip()
        if not secret or secret.startswith("#"):
            continue
        try:
            key = x25519.Identity.from_str(secret)
        except (pyrage.IdentityError, ValueError):
            raise InvalidInputError(
                f"{where}, line {number}: this is no age identity.", "It begins with AGE-SECRET-KEY-1."
            ) from None
        found.append(Identity(str(key.to_public()), secret))
    if not found:
        raise InvalidInputError(f"{where} holds no age identity.", "A line of it begins with AGE-SECRET-KEY-1.")
    return tuple(found)


def write(ring: tuple[Identity, ...], about: str) -> str:
    """The text of an identity file; ``about`` is one line for people."""
    lines = [f"# {about}"]
    for index, identity in enumerate(ring):
        lines += [f"# {'public key' if not index else 'earlier'}: {identity.recipient}", identity.secret]
    return "\n".join(lines) + "\n"


def check_recipient(recipient: str) -> str:
    """The recipient without spaces around it, when it is an X25519 one (``age1…``).

    Raises:
        InvalidInputError: It is not.
    """
    try:
        return str(x25519.Recipient.from_str(recipient.strip()))
    except (pyrage.RecipientError, ValueError):
        raise InvalidInputError(f"{recipient[:80]!r} is no age recipient.", "It begins with age1.") from None


def fingerprint(recipient: str) -> str:
    """Sixteen characters (80 bits) by which two people compare a recipient: ``k7mq-3f5x-2daa-p4ne``."""
    digest = hashlib.sha256(b"waybill recipient\0" + check_recipient(recipient).encode()).digest()
    text = base64.b32encode(digest[:10]).decode().lower()
    return "-".join(text[at : at + 4] for at in range(0, 16, 4))


def same_fingerprint(given: str, recipient: str) -> bool:
    """Whether a person gave this recipient's fingerprint; dashes, spaces and case do not matter."""
    plain = "".join(given.split()).replace("-", "").lower()
    return hmac.compare_digest(plain.encode(), fingerprint(recipient).replace("-", "").encode())


def seal(data: bytes, recipient: str) -> str:
    """The data encrypted to one recipient, as age armor."""
    to = x25519.Recipient.from_str(check_recipient(recipient))
    armor: bytes = pyrage.encrypt(data, [to], armored=True)
    return armor.decode()


def unseal(armor: str, identity: Identity, what: str) -> bytes:
    """What ``seal`` encrypted.

    Raises:
        ForbiddenError: It is damaged, or sealed to somebody else.
    """
    try:
        return bytes(pyrage.decrypt(armor.encode(), [x25519.Identity.from_str(identity.secret)]))
    except (pyrage.DecryptError, ValueError):
        raise ForbiddenError(
            f"{what} does not open with the key of {identity.recipient}: it is damaged or sealed to another."
        ) from None
