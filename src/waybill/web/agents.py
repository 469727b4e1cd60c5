"""The agents' port: an app of its own, reached only with a client certificate of ours.

A host may ask only for what is meant for it: commits and builds of manifests or orders that stand for it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, TypeVar

import msgspec
from litestar import Litestar, Request, asgi, get, post, put
from litestar.response import File
from litestar.types import Receive, Scope, Send

from waybill.core.errors import ForbiddenError, InvalidInputError, NotFoundError, TooLargeError
from waybill.deploy.adapters.git import Mirrors
from waybill.deploy.reported import Reported
from waybill.deploy.store import hosts as store
from waybill.deploy.store import rollouts
from waybill.infra.blobs import Blobs
from waybill.infra.db import Connection, Database
from waybill.trust import manifest as manifests
from waybill.web.client_certificate import KEY
from waybill.web.hub import Hub
from waybill.web.problems import HANDLERS
from waybill.wire.agent import BuildOrder, Desired, LogLines, Reports

T = TypeVar("T")
BODY = 4 * 1024**2
BUILD_LIMIT = 8 * 1024**3
_PACK = re.compile(r"(?P<repository>.+)/(?P<commit>[0-9a-f]{40}(?:[0-9a-f]{24})?)\.pack")


class Watchers(Protocol):
    """Those who watch logs."""

    def push(self, identity: str, lines: list[str], *, end: bool, host: str) -> bool:
        """Hand lines on to whoever asked this host under this id; returns whether anybody did."""


class BuildFailure(msgspec.Struct, frozen=True):
    """Body of ``POST /v1/builds/{id}/failed``."""

    reason: str
    output: str = ""


def agents_app(  # noqa: C901, PLR0915 - a list of routes, each short
    db: Database, hub: Hub, reported: Reported, mirrors: Mirrors, blobs: Blobs, watchers: Watchers
) -> Litestar:
    """The app of the agents' port."""

    async def who(scope: Any) -> str:
        name, serial = _client(scope)
        await db.read(lambda connection: store.admit(connection, name, serial))
        return name

    async def asked(scope: Any, question: Callable[[Connection, str], T]) -> tuple[str, T]:
        """Who asks, and the answer to a question about it, in one look at the database."""
        name, serial = _client(scope)

        def look(connection: Connection) -> T:
            store.admit(connection, name, serial)
            return question(connection, name)

        return name, await db.read(look)

    @asgi("/v1/desired", copy_scope=False)
    async def desired(scope: Scope, receive: Receive, send: Send) -> None:
        host = await who(scope)
        headers = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def tell() -> None:
            async for line in hub.stream(host):
                await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        # What is sent to a host that has gone vanishes without a fault: only the receiving side says that it has.
        telling, leaving = asyncio.create_task(tell()), asyncio.create_task(_left(receive))
        try:
            await asyncio.wait({telling, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            telling.cancel()
            leaving.cancel()
            await asyncio.gather(telling, leaving, return_exceptions=True)

    @post("/v1/report", status_code=204)
    async def report(request: Request[Any, Any, Any]) -> None:
        name, serial = _client(request.scope)
        await reported.reported(name, await _body(request, Reports), serial)

    @get("/v1/commits/{rest:path}")
    async def pack(request: Request[Any, Any, Any], rest: str) -> File:
        match = _PACK.fullmatch(rest.lstrip("/"))
        if match is None:
            raise InvalidInputError("a commit is asked for as /v1/commits/REPOSITORY/COMMIT.pack.")
        repository, commit = match["repository"], match["commit"]
        host, meant = await asked(request.scope, lambda found, name: _meant_for(found, name, repository, commit))
        if not meant:
            raise ForbiddenError(f"{repository} {commit[:12]} is not meant for {host}.")
        path = await mirrors.pack(repository, commit)
        return File(path=path, media_type="application/x-git-packed-objects", filename=f"{commit}.pack")

    @get("/v1/builds/{digest:str}")
    async def build(request: Request[Any, Any, Any], digest: str) -> File:
        host, meant = await asked(request.scope, _builds_for)
        if digest not in meant:
            raise ForbiddenError(f"this build is not meant for {host}.")
        path = blobs.path(digest)
        if not path.exists():
            raise NotFoundError(f"the build {digest[:19]} is not here.")
        return File(path=path, media_type="application/gzip", filename="build.tar.gz")

    @put("/v1/builds/{order:str}", status_code=204)
    async def deliver(request: Request[Any, Any, Any], order: str) -> None:
        host, _ = await asked(request.scope, lambda connection, name: _ordered(connection, name, order))
        expected = request.headers.get("waybill-digest")
        digest, size = await blobs.put(_chunks(request), BUILD_LIMIT, expected)
        await reported.built(order, host, digest, size)

    @post("/v1/builds/{order:str}/failed", status_code=204)
    async def failed(request: Request[Any, Any, Any], order: str) -> None:
        host, _ = await asked(request.scope, lambda connection, name: _ordered(connection, name, order))
        said = await _body(request, BuildFailure)
        await reported.build_failed(order, host, said.reason, said.output)

    @post("/v1/logs/{identity:str}", status_code=204)
    async def logs(request: Request[Any, Any, Any], identity: str) -> None:
        host = await who(request.scope)
        said = await _body(request, LogLines)
        if not watchers.push(identity, said.lines, end=said.end, host=host):
            raise NotFoundError("nobody watches under this id.")

    return Litestar(
        route_handlers=[desired, report, pack, build, deliver, failed, logs],
        openapi_config=None,
        logging_config=None,
        exception_handlers=HANDLERS,
        request_max_body_size=None,
    )


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _client(scope: Any) -> tuple[str, str]:
    """Name and serial of the client certificate."""
    client = (scope.get("extensions") or {}).get(KEY)
    if client is None:
        raise ForbiddenError("this port is for enrolled hosts.", "waybill agent enroll makes one of this machine.")
    return str(client["name"]), str(client["serial"])


async def _chunks(request: Request[Any, Any, Any]) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        yield chunk


async def _body(request: Request[Any, Any, Any], kind: type[T]) -> T:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > BODY:
            raise TooLargeError(f"a message of an agent is at most {BODY} bytes.")
    try:
        return msgspec.json.decode(bytes(data), type=kind)
    except msgspec.DecodeError as error:
        raise InvalidInputError(f"this is no {kind.__name__}: {error}") from error


def _standing(connection: Connection, host: str) -> list[Desired | BuildOrder]:
    bodies = store.told_to(connection, host)
    decoder = msgspec.json.Decoder(Desired | BuildOrder)
    return [decoder.decode(body) for body in bodies if '"type":"desired"' in body or '"type":"build"' in body]


def _meant_for(connection: Connection, host: str, repository: str, commit: str) -> bool:
    for message in _standing(connection, host):
        about = manifests.decode(message.manifest) if isinstance(message, Desired) else message
        if (about.repository, about.commit) == (repository, commit):
            return True
    return False


def _builds_for(connection: Connection, host: str) -> set[str]:
    standing = (message for message in _standing(connection, host) if isinstance(message, Desired))
    return {manifests.decode(message.manifest).build or "" for message in standing}


def _ordered(connection: Connection, host: str, order: str) -> None:
    row = rollouts.build(connection, order)
    if row.host != host:
        raise ForbiddenError(f"this build was not ordered from {host}.")
