"""``/api/repositories``: what the server mirrors, and the credentials it has for that."""

from __future__ import annotations

from litestar import get, post
from litestar.params import JSONBody

from waybill.core.errors import InvalidInputError
from waybill.deploy import access
from waybill.deploy.adapters.git import check_address
from waybill.deploy.model import Repository
from waybill.deploy.store import repositories as store
from waybill.infra.db import Connection
from waybill.web.api.common import REPOSITORY, Ours, Who, named
from waybill.web.auth import unbound
from waybill.web.context import Context
from waybill.wire.api import RepositoryInfo, RepositoryWanted

KINDS = {"ssh": "deploy_key", "token": "https_token", "hosts": "known_hosts"}
LIMIT = 64 * 1024


@get("/repositories")
async def list_repositories(context: Ours, token: Who) -> list[RepositoryInfo]:
    """All repositories, with the kinds of credential that the server has."""
    unbound(token, "view")

    def read(connection: Connection) -> list[tuple[Repository, dict[str, str]]]:
        return [(one, store.heads(connection, one.name)) for one in store.repositories(connection)]

    return [_info(context, one, heads) for one, heads in await context.db.read(read)]


@post("/repositories")
async def put_repository(context: Ours, token: Who, data: JSONBody[RepositoryWanted]) -> RepositoryInfo:
    """Make a repository known, or change its address or credentials; it is fetched at once to see that they work."""
    access.require(token, "administer")
    named("repository", data.name, REPOSITORY)
    check_address(data.url)
    given = {kind: getattr(data, field) for kind, field in KINDS.items() if getattr(data, field) is not None}
    if any(len(value) > LIMIT for value in given.values()):
        raise InvalidInputError("a credential is over 64 KiB.")
    keys = {kind: context.pushes.mirrors.credential(data.name, kind) for kind in given}
    before = {kind: context.keys.get(key) for kind, key in keys.items()}
    for kind, key in keys.items():
        value = given[kind].replace("\r\n", "\n").strip()
        context.keys.put(key, value.encode() + b"\n") if value else context.keys.remove(key)
    try:
        heads = await context.pushes.add_repository(Repository(name=data.name, url=data.url), token.actor)
    except BaseException:
        for kind, key in keys.items():
            old = before[kind]
            context.keys.remove(key) if old is None else context.keys.put(key, old)
        raise
    return _info(context, Repository(name=data.name, url=data.url), heads)


def _info(context: Context, repository: Repository, heads: dict[str, str]) -> RepositoryInfo:
    mirrors = context.pushes.mirrors
    kinds = [kind for kind in KINDS if context.keys.get(mirrors.credential(repository.name, kind)) is not None]
    return RepositoryInfo(
        name=repository.name, url=repository.url, credentials=kinds, heads=heads, trouble=repository.trouble
    )


HANDLERS = [list_repositories, put_repository]
