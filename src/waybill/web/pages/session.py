"""Sessions of people: a signed cookie that names a token and an end, never the token's secret.

The cookie is worth nothing without the server's key, lasts 12 hours, and each request looks the token up again, so a
revoked token ends all its sessions at once. A request that changes something must say by ``Sec-Fetch-Site`` or
``Origin`` that it comes from this very site.
"""

from __future__ import annotations

import hmac
import os
import re
import time
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import msgspec
from litestar.connection import ASGIConnection
from litestar.datastructures import Cookie

from waybill.core.clock import stamp
from waybill.core.errors import ForbiddenError
from waybill.deploy.access import Token
from waybill.deploy.store import access
from waybill.infra.db import Database
from waybill.infra.keys import Keys

LASTS = 12 * 3600
"""Seconds a session lasts."""
KEY = "session-cookies"
_FORM = re.compile(r"1\.([0-9a-f-]{36})\.([0-9]{1,12})\.([0-9a-f]{64})")

Asking = ASGIConnection[Any, Any, Any, Any]


class Session(msgspec.Struct, frozen=True):
    """Somebody who is logged in, and until when (seconds since 1970)."""

    token: Token
    until: float


class Sessions:
    """Makes and reads session cookies.

    Args:
        db: Where tokens are.
        keys: Where the signing key is; it is made on first use.
        public_url: Address of the page; cookies are ``Secure`` when it is https.
    """

    def __init__(self, db: Database, keys: Keys, public_url: str) -> None:
        self._db = db
        self._key = keys.get(KEY) or _new_key(keys)
        self._site = urlsplit(public_url)
        self.secure = self._site.scheme == "https"
        self.cookie = "__Host-waybill" if self.secure else "waybill"

    def open(self, token: Token) -> Cookie:
        """The cookie of a new session."""
        text = f"1.{token.id}.{int(time.time()) + LASTS}"
        return self._cookie(f"{text}.{self._sign(text)}", LASTS)

    def end(self) -> Cookie:
        """The cookie that makes a browser forget its session."""
        return self._cookie("", 0)

    async def session(self, request: Asking) -> Session | None:
        """Who is logged in; None without a valid cookie of a token that is still good."""
        found = _FORM.fullmatch(request.cookies.get(self.cookie, ""))
        if found is None:
            return None
        text, _, signature = found.group(0).rpartition(".")
        until = int(found.group(2))
        if not hmac.compare_digest(signature, self._sign(text)) or until < time.time():
            return None
        held = await self._db.read(lambda connection: access.token_and_hash(connection, found.group(1)))
        return Session(held[0], until) if held is not None and good(held[0]) else None

    async def session_token(self, request: Asking) -> Token | None:
        """The token of who is logged in, for the API's reading requests."""
        session = await self.session(request)
        return session.token if session else None

    def require_same_site(self, request: Asking) -> None:
        """Refuse a request that another site had the browser send (Fetch Metadata; RFC 6454 where it is missing)."""
        site = request.headers.get("sec-fetch-site")
        origin = urlsplit(request.headers.get("origin", ""))
        ours = {self._site.netloc, request.headers.get("host", "")} - {""}
        if site != "same-origin" if site is not None else origin.netloc not in ours:
            raise ForbiddenError(
                "this request comes from another site.", "Open the page itself and press the button there."
            )

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), sha256).hexdigest()

    def _cookie(self, value: str, lasts: int) -> Cookie:
        return Cookie(
            key=self.cookie, value=value, max_age=lasts, path="/", secure=self.secure, httponly=True, samesite="strict"
        )


def good(token: Token) -> bool:
    """Whether a token is neither revoked nor expired."""
    return not token.revoked and not (token.expires and token.expires < stamp())


def _new_key(keys: Keys) -> bytes:
    keys.put(KEY, os.urandom(32))
    return keys.get(KEY) or b""
