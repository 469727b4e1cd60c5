"""Who may do what: scoped tokens and the roles they carry.

A token is ``wbt_<id>_<secret>``. Only the SHA-256 of the secret is kept, which suffices for 256 random bits. Roles
build on each other, except that an admin is no approver: whoever runs the server cannot approve what runs.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from fnmatch import fnmatchcase
from typing import Literal

import msgspec

from waybill.core.clock import stamp
from waybill.core.errors import ForbiddenError, UnauthenticatedError
from waybill.core.ids import new_id

Role = Literal["viewer", "deployer", "approver", "admin", "reporter"]
Right = Literal["view", "deploy", "approve", "administer", "report"]

RIGHTS: dict[str, frozenset[str]] = {
    "viewer": frozenset({"view"}),
    "deployer": frozenset({"view", "deploy", "report"}),
    "approver": frozenset({"view", "approve"}),
    "admin": frozenset({"view", "deploy", "administer", "report"}),
    "reporter": frozenset({"report"}),  # a test machine, which sends what it saw and learns nothing
}


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token without its secret.

    Attributes:
        id: UUIDv7.
        name: For people, for example whose it is.
        role: What it may do.
        services: Pattern of the services that it reaches.
        environments: Pattern of the environments that it reaches.
        expires: RFC 3339 UTC; empty for never.
        revoked: Refused from now on.
    """

    id: str
    name: str
    role: Role
    services: str = "*"
    environments: str = "*"
    expires: str = ""
    revoked: bool = False

    @property
    def actor(self) -> str:
        """How events name it."""
        return f"token:{self.name}"


def issue(
    name: str, role: Role, services: str = "*", environments: str = "*", expires: str = ""
) -> tuple[Token, str, str]:
    """A fresh token: (its record, the text that is shown once, the hash that is kept)."""
    identity, secret = new_id(), secrets.token_urlsafe(32)
    record = Token(id=identity, name=name, role=role, services=services, environments=environments, expires=expires)
    return record, f"wbt_{identity}_{secret}", digest(secret)


def digest(secret: str) -> str:
    """Hex SHA-256 of a token's secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def split(text: str) -> tuple[str, str]:
    """(id, secret) of a token's text.

    Raises:
        UnauthenticatedError: It has not the form of a token.
    """
    prefix, _, rest = text.strip().partition("_")
    identity, _, secret = rest.partition("_")
    if prefix != "wbt" or len(identity) != 36 or not secret or len(secret) > 100 or not text.isascii():
        raise UnauthenticatedError("this is no Waybill token.", "It begins with wbt_ and was printed once.")
    return identity, secret


def vouch(found: tuple[Token, str] | None, secret: str) -> Token:
    """The token, if its secret is right and it is still valid; takes equally long whether it exists or not."""
    known = found[1] if found else "0" * 64
    right = hmac.compare_digest(known, digest(secret))
    if found is None or not right:
        raise UnauthenticatedError("this token is not known here.", "Ask an admin for one: waybill token create.")
    token = found[0]
    if token.revoked or (token.expires and token.expires < stamp()):
        raise UnauthenticatedError("this token was revoked or has expired.", "Ask an admin for a new one.")
    return token


def require(token: Token, right: Right, service: str | None = None, environment: str | None = None) -> None:
    """Refuse what a token may not do; without a service, what is not bound to one."""
    if right not in RIGHTS[token.role]:
        raise ForbiddenError(f"a {token.role} may not {right}.", "Ask an admin for a token with another role.")
    if service is None and right == "administer" and (token.services != "*" or token.environments != "*"):
        raise ForbiddenError("this token is bound to some services; this needs an admin of all.")
    for value, pattern, what in (
        (service, token.services, "service"),
        (environment, token.environments, "environment"),
    ):
        if value is not None and not fnmatchcase(value, pattern):
            raise ForbiddenError(f"this token does not reach {what} {value}; it is bound to {pattern}.")


def sees(token: Token, service: str, environment: str) -> bool:
    """Whether a token may see this service and environment."""
    return fnmatchcase(service, token.services) and fnmatchcase(environment, token.environments)
