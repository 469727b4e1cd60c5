"""Who sent this: the signature schemes of the forges, on raw bytes and in constant time.

All schemes are HMAC-SHA256 with a secret that both sides know, except GitLab's older token, which is the secret
itself. A weaker scheme never stands in for a stronger one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from datetime import datetime

from waybill.core.errors import InvalidInputError, WaybillError
from waybill.forge.model import StaleError, UnsignedError, WrongSignatureError

TOLERANCE = 300
"""Seconds that a signed time may lie before or after ours."""
REPEATED = "\n"
"""Joins the values of a repeated header; no header holds one, so ``one`` recognises it."""

_NAME = re.compile(r"[!-~](?:[ -~]{0,98}[!-~])?")
_ID = re.compile(r"[!-~]{1,128}")
_SECONDS = re.compile(r"[0-9]{1,12}")


def fold(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The headers of a request by lower-case name, as adapters read them; a repeated one keeps all its values."""
    headers: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}{REPEATED}{text}" if key in headers else text
    return headers


def one(headers: Mapping[str, str], name: str) -> str | None:
    """The value of a header that may be there once; empty counts as absent.

    Raises:
        InvalidInputError: It was sent more than once, so that two readers could believe different things.
    """
    value = headers.get(name.lower(), "")
    if REPEATED in value:
        raise InvalidInputError(f"the header {name} was sent more than once.")
    return value.strip() or None


def event_of(headers: Mapping[str, str], name: str) -> str:
    """The event that a header names; InvalidInputError when it is missing or malformed."""
    value = one(headers, name)
    if value is None or not _NAME.fullmatch(value):
        raise InvalidInputError(f"the header {name} is missing or malformed.", "Is this hook of another forge's kind?")
    return value


def delivery_of(headers: Mapping[str, str], name: str) -> str | None:
    """The delivery id in a header, if there is one; InvalidInputError when it is malformed."""
    value = one(headers, name)
    if value is not None and not _ID.fullmatch(value):
        raise InvalidInputError(f"the header {name} is malformed.")
    return value


def digest_id(body: bytes, shared: str = "") -> str:
    """A delivery id for senders that give none: equal bodies (with the same ``shared`` id) are the same delivery."""
    return "sha256:" + hashlib.sha256(shared.encode() + body).hexdigest()


def key_of(secret: str) -> bytes:
    """The bytes of a secret; WaybillError for an empty one, with which anybody could sign."""
    if not secret:
        raise WaybillError("this hook has no secret.", "Make the hook again.")
    return secret.encode("utf-8", "surrogatepass")


def equal(expected: bytes, given: str) -> bool:
    """Compare in constant time."""
    # A character outside Latin-1 never comes from a socket; escaping it makes it differ.
    return hmac.compare_digest(expected, given.encode("latin-1", "backslashreplace"))


def check_hex(given: str, where: str, body: bytes, secret: str, prefix: str = "") -> None:
    """Check ``prefix`` + hexadecimal HMAC-SHA256 of the body; WrongSignatureError when it differs."""
    expected = prefix + hmac.new(key_of(secret), body, hashlib.sha256).hexdigest()
    if not equal(expected.encode(), given):
        raise WrongSignatureError(
            f"the signature in {where} does not fit this body and this hook's secret.",
            "Enter the same secret in the forge and in Waybill; nothing in between may change the body.",
        )


def check_fresh(seconds: str, where: str, now: datetime) -> None:
    """Check a signed time in seconds since 1970; StaleError beyond ``TOLERANCE`` on either side."""
    if not _SECONDS.fullmatch(seconds):
        raise InvalidInputError(f"the header {where} holds no time in seconds since 1970.")
    age = now.timestamp() - int(seconds)
    if abs(age) > TOLERANCE:
        side = "before" if age > 0 else "after"
        raise StaleError(
            f"this was signed {abs(age):.0f} seconds {side} now; {TOLERANCE} are allowed.",
            "Either it is a replay, or one of the two clocks is wrong.",
        )


def standard_key(secret: str) -> bytes:
    """The key in a Standard Webhooks secret, ``whsec_`` + base64 of 24 to 64 bytes; InvalidInputError otherwise."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise InvalidInputError(
            "a signing token is whsec_ and the base64 of 24 to 64 bytes.", "Copy it again from the forge."
        )
    return key


def check_standard(headers: Mapping[str, str], body: bytes, secret: str, now: datetime) -> str:
    """Check a Standard Webhooks signature (specification 1.0.0, symmetric scheme ``v1``); returns the signed id.

    The signed content is ``webhook-id.webhook-timestamp.body``. Several signatures may stand side by side while a
    secret is being replaced; schemes other than ``v1`` are passed over.

    Raises:
        UnauthenticatedError: Unsigned, wrongly signed, or signed too long ago or in the future.
    """
    given = one(headers, "webhook-signature")
    identity = delivery_of(headers, "webhook-id")
    seconds = one(headers, "webhook-timestamp")
    if given is None or identity is None or seconds is None:
        raise UnsignedError(
            "this hook has a signing token, and the request lacks webhook-signature, webhook-id or webhook-timestamp.",
            "Set the signing token in the forge; a secret token beside it is not enough.",
        )
    content = b"%s.%s.%s" % (identity.encode("latin-1"), seconds.encode("latin-1", "backslashreplace"), body)
    expected = b"v1," + base64.b64encode(hmac.new(standard_key(secret), content, hashlib.sha256).digest())
    if not any([equal(expected, candidate) for candidate in given.split(" ")]):  # noqa: C419 - looks at all of them
        raise WrongSignatureError(
            "the signature in webhook-signature does not fit this body and this hook's signing token.",
            "Enter the same signing token in the forge and in Waybill; nothing in between may change the body.",
        )
    check_fresh(seconds, "webhook-timestamp", now)
    return identity
