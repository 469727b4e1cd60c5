"""``/api/grants``: which repository, branches and hosts an environment may use."""

from __future__ import annotations

import msgspec
from litestar import delete, get, put
from litestar.params import FromPath, JSONBody

from waybill.core.errors import InvalidInputError
from waybill.deploy import access
from waybill.deploy.model import Grant
from waybill.deploy.store import repositories as store
from waybill.infra.db import Connection
from waybill.web.api.common import NAME, REPOSITORY, Ours, Who, changed, labelled, named, words
from waybill.wire.api import GrantInfo, GrantWanted


@get("/grants")
async def list_grants(context: Ours, token: Who) -> list[GrantInfo]:
    """The grants that the token sees."""
    access.require(token, "view")
    found = await context.db.read(store.grants)
    return [_info(grant) for grant in found if access.sees(token, grant.service, grant.environment)]


@put("/grants/{service:str}/{environment:str}")
async def put_grant(
    context: Ours, token: Who, service: FromPath[str], environment: FromPath[str], data: JSONBody[GrantWanted]
) -> GrantInfo:
    """Grant an environment to a repository, or change the grant that it has."""
    access.require(token, "administer", named("service", service, NAME), named("environment", environment, NAME))
    named("repository", data.repository, REPOSITORY)
    if not data.branches or not all(0 < len(branch) <= 200 for branch in data.branches):
        raise InvalidInputError("a grant names at least one branch or pattern.", "For example main.")
    grant = Grant(
        id="",
        repository=data.repository,
        service=service,
        environment=environment,
        branches=tuple(data.branches),
        hosts=labelled(data.hosts),
    )

    def keep(connection: Connection) -> Grant:
        store.repository(connection, data.repository)
        kept = store.put_grant(connection, grant, token.actor)
        what = f"granted to {kept.repository}, branches {', '.join(kept.branches)}, hosts with {words(kept.hosts)}"
        changed(connection, "grant", f"{service}/{environment}", what, token)
        return kept

    return _info(await context.db.write(keep))


@delete("/grants/{service:str}/{environment:str}", status_code=204)
async def revoke_grant(context: Ours, token: Who, service: FromPath[str], environment: FromPath[str]) -> None:
    """Take a grant back; what runs keeps running."""
    access.require(token, "administer", service, environment)

    def revoke(connection: Connection) -> None:
        grant = store.revoke_grant(connection, service, environment)
        changed(connection, "grant", f"{service}/{environment}", f"taken back from {grant.repository}", token)

    await context.db.write(revoke)


def _info(grant: Grant) -> GrantInfo:
    return msgspec.convert(grant, GrantInfo, from_attributes=True)


HANDLERS = [list_grants, put_grant, revoke_grant]
