"""Webhook addresses: one for each repository and forge, with a secret that is shown once."""

from __future__ import annotations

from litestar import delete, get, post
from litestar.params import FromPath, JSONBody

from waybill.deploy import access
from waybill.deploy.store import access as store
from waybill.web.api.common import REPOSITORY, Ours, Who, changed, named
from waybill.web.auth import unbound
from waybill.web.context import Context
from waybill.wire.api import HookInfo, HookMade, HookWanted


@get("/hooks")
async def list_hooks(context: Ours, token: Who) -> list[HookInfo]:
    """All addresses, without their secrets."""
    unbound(token, "view")
    rows, last = await context.db.read(
        lambda connection: (store.hooks(connection), store.last_deliveries(connection)),
    )
    return [
        HookInfo(
            id=row["id"],
            forge=row["forge"],
            repository=row["repository"],
            url=_url(context, row["id"]),
            created=row["created"],
            actor=row["actor"],
            last=last.get(row["id"], ""),
        )
        for row in rows
    ]


@post("/hooks")
async def add_hook(context: Ours, token: Who, data: JSONBody[HookWanted]) -> HookMade:
    """Make an address for the deliveries of a repository; its secret is in this answer and nowhere else."""
    access.require(token, "administer")
    named("repository", data.repository, REPOSITORY)
    identity, secret = await context.hooks.add(data.forge, data.repository, token.actor, data.secret or "")
    return HookMade(
        id=identity, forge=data.forge, repository=data.repository, url=_url(context, identity), secret=secret
    )


@delete("/hooks/{identity:str}", status_code=204)
async def remove_hook(context: Ours, token: Who, identity: FromPath[str]) -> None:
    """Refuse what is delivered to an address from now on."""
    access.require(token, "administer")
    await context.hooks.remove(identity)
    await context.db.write(lambda connection: changed(connection, "hook", identity, "removed", token))


def _url(context: Context, identity: str) -> str:
    return f"{context.public_url}/hooks/{identity}"


HANDLERS = [list_hooks, add_hook, remove_hook]
