"""``/api/tokens``: who may talk to the server, and as whom."""

from __future__ import annotations

import msgspec
from litestar import delete, get, post
from litestar.params import FromPath, JSONBody

from waybill.core.clock import later
from waybill.core.errors import ForbiddenError, InvalidInputError, NotFoundError
from waybill.deploy import access
from waybill.deploy.access import Token
from waybill.deploy.store import access as store
from waybill.infra.db import Connection
from waybill.web.api.common import Ours, Who, changed
from waybill.wire.api import TokenInfo, TokenMade, TokenWanted


@get("/token")
async def own_token(token: Who) -> TokenInfo:
    """The token that asks."""
    return _info(token)


@get("/tokens")
async def list_tokens(context: Ours, token: Who) -> list[TokenInfo]:
    """All tokens, without their secrets."""
    access.require(token, "administer")
    return [_info(one) for one in await context.db.read(store.tokens)]


@post("/tokens")
async def create_token(context: Ours, token: Who, data: JSONBody[TokenWanted]) -> TokenMade:
    """A fresh token; its text is in this answer and nowhere else."""
    access.require(token, "administer")
    if not 0 < len(data.name) <= 100 or not data.name.isprintable():
        raise InvalidInputError("a token needs a name of at most 100 characters.", "For example whose it is.")
    for pattern in (data.services, data.environments):
        if not 0 < len(pattern) <= 200:
            raise InvalidInputError("a pattern has 1 to 200 characters.", "* means all.")
    if not 0 <= data.days <= 3650:
        raise InvalidInputError("a token is valid for at most 3650 days; 0 means for ever.")
    expires = later(data.days * 86400) if data.days else ""
    made, text, digest = access.issue(data.name, data.role, data.services, data.environments, expires)

    def keep(connection: Connection) -> None:
        store.add_token(connection, made, digest, token.actor)
        reach = f"{made.role} of {made.services} in {made.environments}"
        changed(connection, "token", made.name, f"created, {reach}", token)

    await context.db.write(keep)
    return TokenMade(text=text, token=_info(made))


@delete("/tokens/{identity:str}", status_code=204)
async def revoke_token(context: Ours, token: Who, identity: FromPath[str]) -> None:
    """Refuse a token from now on; everybody may revoke their own."""
    if identity != token.id:
        access.require(token, "administer")

    def revoke(connection: Connection) -> None:
        found = store.token_and_hash(connection, identity)
        if found is None:
            raise NotFoundError(f"no token has the id {identity[:40]!r}.", "waybill token list shows them.")
        others = [one for one in store.tokens(connection) if one.id != identity and _rules(one)]
        if _rules(found[0]) and not others:
            raise ForbiddenError("this is the last token of an admin.", "Create another one first.")
        store.revoke_token(connection, identity)
        changed(connection, "token", found[0].name, "revoked", token)

    await context.db.write(revoke)


def _rules(token: Token) -> bool:
    return token.role == "admin" and not token.revoked and token.services == token.environments == "*"


def _info(token: Token) -> TokenInfo:
    return msgspec.convert(token, TokenInfo, from_attributes=True)


HANDLERS = [own_token, list_tokens, create_token, revoke_token]
