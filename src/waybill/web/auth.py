"""Who is asking: a token in ``Authorization: Bearer``. Cookies count for pages only, never here.

An address that keeps sending wrong tokens is made to wait; one that sent a right one lately is not, so that a crowd
behind one proxy cannot be locked out.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler
from litestar.types import Guard

from waybill.core.errors import ForbiddenError, InvalidInputError, UnauthenticatedError
from waybill.deploy import access
from waybill.deploy.access import Right, Token
from waybill.deploy.store import access as store
from waybill.web.context import Context
from waybill.web.problems import TooManyError

WINDOW = 60.0
FAILURES = 20
"""Wrong tokens that one address may send in ``WINDOW`` seconds."""
REMEMBERED = 10_000


class Attempts:
    """Failed log-ins by address, and tokens that were right, both of this process and bounded."""

    def __init__(self) -> None:
        self._failed: OrderedDict[str, list[float]] = OrderedDict()
        self._right: OrderedDict[bytes, None] = OrderedDict()

    def check(self, address: str, text: str) -> None:
        """Refuse an address that failed too often, unless this token was right before."""
        recent = self._recent(address)
        if len(recent) >= FAILURES and _mark(text) not in self._right:
            wait = int(recent[0] + WINDOW - time.monotonic()) + 1
            raise TooManyError("too many wrong tokens came from this address.", f"Try again in {wait} s.", wait)

    def failed(self, address: str) -> None:
        """Note a wrong token."""
        self._failed[address] = [*self._recent(address), time.monotonic()][-FAILURES:]
        self._failed.move_to_end(address)
        if len(self._failed) > REMEMBERED:
            self._failed.popitem(last=False)

    def succeeded(self, text: str) -> None:
        """Note a right token."""
        self._right[_mark(text)] = None
        self._right.move_to_end(_mark(text))
        if len(self._right) > REMEMBERED:
            self._right.popitem(last=False)

    def _recent(self, address: str) -> list[float]:
        since = time.monotonic() - WINDOW
        return [moment for moment in self._failed.get(address, ()) if moment > since]


class Door:
    """Lets known tokens in.

    Args:
        context: For the database.
    """

    def __init__(self, context: Context) -> None:
        self._db = context.db
        self._attempts = Attempts()

    async def vouch(self, text: str, address: str) -> Token:
        """The token of this text.

        Raises:
            UnauthenticatedError: It is wrong, revoked or expired.
            TooManyError: The address has to wait.
        """
        self._attempts.check(address, text)
        try:
            identity, secret = access.split(text)
            found = await self._db.read(lambda connection: store.token_and_hash(connection, identity))
            token = access.vouch(found, secret)
        except UnauthenticatedError:
            self._attempts.failed(address)
            raise
        self._attempts.succeeded(text)
        return token

    async def who(self, connection: ASGIConnection[Any, Any, Any, Any]) -> Token | None:
        """The token that came with a request; None when none did, an error when it is not right."""
        address = connection.client.host if connection.client else "?"
        scheme, _, text = connection.headers.get("authorization", "").partition(" ")
        if not text:
            return None
        if scheme.lower() != "bearer":
            raise UnauthenticatedError(f"the scheme {scheme[:20]!r} is not known.", "Send Authorization: Bearer.")
        return await self.vouch(text, address)

    @property
    def guard(self) -> Guard:
        """A guard that admits only requests with a right token, and leaves it as ``request.user``."""

        async def known(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
            if "\0" in connection.scope["path"] or b"%00" in connection.scope["query_string"]:
                raise InvalidInputError("an address holds no NUL.")
            token = await self.who(connection)
            if token is None:
                raise UnauthenticatedError(
                    "this needs a token.", "Send Authorization: Bearer wbt_…, or run waybill login."
                )
            connection.scope["user"] = token

        return known


def unbound(token: Token, right: Right) -> None:
    """Refuse unless a token has this right over everything.

    Raises:
        ForbiddenError: Its role has it not, or it is bound to some services.
    """
    access.require(token, right)
    if token.services != "*" or token.environments != "*":
        raise ForbiddenError(
            "this token is bound to some services; this needs one for all.", "Ask an admin for another token."
        )


def _mark(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
