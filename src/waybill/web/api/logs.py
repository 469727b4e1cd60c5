"""``/api/logs``: the log of a service, asked of its hosts and passed on as it comes; nothing of it is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from litestar import get
from litestar.params import FromPath, FromQuery
from litestar.response import Stream

from waybill.core.errors import NotFoundError, UnavailableError
from waybill.core.ids import new_id
from waybill.deploy import access
from waybill.deploy.store import hosts as store
from waybill.infra.db import Connection
from waybill.web.api.common import Ours, Who
from waybill.web.feed import SILENCE, sse, stream
from waybill.web.logs import Watch
from waybill.wire.agent import LogsWanted
from waybill.wire.api import LogLine

ANSWER_WITHIN = 10.0
LONGEST = 3600
MOST = 5000


@get("/logs/{service:str}/{environment:str}", media_type="text/event-stream")
async def follow_logs(
    context: Ours,
    token: Who,
    service: FromPath[str],
    environment: FromPath[str],
    host: FromQuery[str | None] = None,
    lines: FromQuery[int] = 100,
    seconds: FromQuery[int] = 0,
) -> Stream:
    """Server-sent lines: the last ``lines`` of each host, and new ones for ``seconds``."""
    access.require(token, "view", service, environment)
    bounded, longest = max(0, min(lines, MOST)), max(0, min(seconds, LONGEST))
    names = await context.db.read(lambda connection: _where(connection, service, environment, host))
    asked, away = {}, []
    for name in names:
        identity = new_id()
        asked[identity] = name
    watch = context.logs.open(asked)
    for identity, name in asked.items():
        wanted = LogsWanted(id=identity, service=service, environment=environment, lines=bounded, seconds=longest)
        if not context.ask_host(name, wanted):
            away.append(name)
            watch.add(identity, [], end=True)
    if len(away) == len(asked):
        watch.close()
        raise UnavailableError(f"not connected to this server: {', '.join(away)}.", "waybill hosts list shows them.")
    return stream(_chunks(watch, away, longest, context.stopping))


async def _chunks(watch: Watch, away: list[str], seconds: int, stopping: asyncio.Event) -> AsyncIterator[bytes]:
    try:
        for name in away:
            yield sse(LogLine(host=name, note="not connected"))
        async for line in watch.lines(ANSWER_WITHIN, seconds + 60.0):
            yield SILENCE if line is None else sse(line)
            if stopping.is_set():
                return
    finally:
        watch.close()


def _where(connection: Connection, service: str, environment: str, host: str | None) -> list[str]:
    names = [
        name
        for name, report in store.reports(connection)
        if (report.service, report.environment) == (service, environment) and host in (None, name)
    ]
    if not names:
        on = f" on {host}" if host else ""
        raise NotFoundError(f"no host has said anything of {service}/{environment}{on}.", "waybill status shows all.")
    return names


HANDLERS = [follow_logs]
