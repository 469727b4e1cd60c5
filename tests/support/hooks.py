"""A real HTTP server with nothing but the hooks, and senders that sign as forges do."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvicorn
from litestar import Litestar

from waybill.web.hooks import Hooks
from waybill.web.patience import PatientProtocol
from waybill.web.problems import HANDLERS

SECRET = "a secret of the tests"
OLD, NEW = "a" * 40, "b" * 40


def push(branch: str = "main", after: str = NEW, **more: Any) -> bytes:
    told = {"ref": f"refs/heads/{branch}", "before": OLD, "after": after, "repository": {"full_name": "team/app"}}
    return json.dumps({**told, "sender": {"login": "ann", "id": 7}, **more}).encode()


def signed(body: bytes, delivery: str = "d1", secret: str = SECRET, event: str = "push") -> dict[str, str]:
    mac = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {
        "content-type": "application/json",
        "x-github-event": event,
        "x-github-delivery": delivery,
        "x-hub-signature-256": f"sha256={mac}",
    }


def raw(path: str, body: bytes, headers: dict[str, str], method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: test", *(f"{name}: {value}" for name, value in headers.items())]
    if not {"content-length", "transfer-encoding"} & headers.keys():
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Answer:
    """What came back on a socket."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def told(self) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(self.body)
        return decoded


async def read_answer(reader: asyncio.StreamReader, limit: float = 10.0) -> Answer:
    async with asyncio.timeout(limit):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(int(head[0].split(" ")[1]), headers, body)


class Served:
    """A server that listens, and a way to talk to it byte by byte."""

    def __init__(self, port: int, hooks: Hooks) -> None:
        self.port, self.hooks = port, hooks

    async def exchange(self, data: bytes, limit: float = 10.0) -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            with suppress(ConnectionError):  # refused before all of it was read
                writer.write(data)
                await writer.drain()
            return await read_answer(reader, limit)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def post(self, hook: str, body: bytes, headers: dict[str, str]) -> Answer:
        return await self.exchange(raw(f"/hooks/{hook}", body, headers))


@asynccontextmanager
async def serving(hooks: Hooks) -> AsyncIterator[Served]:
    app = Litestar(route_handlers=[hooks.router()], exception_handlers=HANDLERS, openapi_config=None)
    config = uvicorn.Config(app, http=PatientProtocol, lifespan="off", log_level="critical", access_log=False)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(10):
            while not server.started:
                await asyncio.sleep(0.005)
        yield Served(listener.getsockname()[1], hooks)
    finally:
        server.should_exit = True
        server.force_exit = True
        await task
        listener.close()
