"""``/api/builds``: continuous integration posts the packed result of a commit."""

from __future__ import annotations

import re
from typing import Any

from litestar import Request, put
from litestar.params import FromPath, FromQuery

from waybill.core.errors import ConflictError, InvalidInputError, NotFoundError
from waybill.deploy import access
from waybill.deploy.access import Token
from waybill.deploy.store import repositories
from waybill.infra.db import Connection
from waybill.web.api.common import Ours, Who
from waybill.wire.api import BuildInfo

LIMIT = 4 * 1024**3
"""Bytes of a packed result."""


@put("/builds/{service:str}", request_max_body_size=LIMIT)
async def put_build(
    request: Request[Token, Any, Any],
    context: Ours,
    token: Who,
    service: FromPath[str],
    commit: FromQuery[str],
    digest: FromQuery[str | None] = None,
    repository: FromQuery[str | None] = None,
) -> BuildInfo:
    """Take the packed result (the raw body) of a commit; hosts get exactly these bytes.

    ``digest`` (``sha256:…``) makes the server refuse anything else; ``repository`` is needed only when a service is
    granted to several.
    """
    access.require(token, "deploy", service)
    if not re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", commit):
        raise InvalidInputError(f"{commit[:80]!r} is no full commit id.", "git rev-parse HEAD prints one.")
    name = await context.db.read(lambda connection: _repository(connection, token, service, repository))
    known = await context.db.read(lambda connection: repositories.repository(connection, name))
    await context.pushes.mirrors.fetch(known)
    files = [file for file in await context.pushes.files(name, commit) if file.service == service]
    if not files:
        raise NotFoundError(f"{commit[:12]} of {name} describes no service {service}.")
    if files[0].build is None:
        raise ConflictError(f"{service} has no `build` at {commit[:12]}: the commit's tree is the build.")
    kept, size = await context.blobs.put(request.stream(), LIMIT, digest)
    identity = await context.reported.posted_build(service, name, commit, files[0].path, kept, size)
    return BuildInfo(id=identity, service=service, repository=name, commit=commit, digest=kept, size=size)


def _repository(connection: Connection, token: Token, service: str, repository: str | None) -> str:
    granted = {
        grant.repository
        for grant in repositories.grants(connection)
        if grant.service == service and access.sees(token, service, grant.environment)
    }
    if repository is not None:
        granted &= {repository}
    if not granted:
        raise NotFoundError(f"{service} is granted to no such repository.", "waybill grant list shows all.")
    if len(granted) > 1:
        raise InvalidInputError(f"{service} is granted to {', '.join(sorted(granted))}.", "Name one: &repository=…")
    return granted.pop()


HANDLERS = [put_build]
