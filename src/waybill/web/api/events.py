"""``/api/events``: what happened, as a list and as a stream that follows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from litestar import Request, get
from litestar.params import FromQuery
from litestar.response import Stream

from waybill.deploy import access
from waybill.deploy.access import Token
from waybill.events import outbox
from waybill.events.model import Event
from waybill.infra.db import Connection
from waybill.web.api.common import Ours, Who
from waybill.web.feed import SILENCE, sse, stream
from waybill.wire.api import EventInfo

LOOK_BACK = 2000
"""Events that are looked through for those that a bound token may see."""


@get("/events")
async def list_events(
    context: Ours,
    token: Who,
    since: FromQuery[int | None] = None,
    limit: FromQuery[int] = 50,
    subject: FromQuery[str | None] = None,
) -> list[EventInfo]:
    """Events, oldest first: the newest ones, or those after position ``since``."""
    access.require(token, "view")
    bounded = max(1, min(limit, 1000))

    def read(connection: Connection) -> list[Event]:
        if since is not None:
            found = outbox.events_since(connection, since, LOOK_BACK, subject)
            return [event for event in found if visible(token, event)][:bounded]
        found = outbox.latest_events(connection, LOOK_BACK if _bound(token) else bounded, subject)
        return [event for event in found if visible(token, event)][:bounded][::-1]

    return [info(event) for event in await context.db.read(read)]


@get("/events/stream", media_type="text/event-stream")
async def follow_events(
    request: Request[Token, Any, Any],
    context: Ours,
    token: Who,
    since: FromQuery[int | None] = None,
    subject: FromQuery[str | None] = None,
) -> Stream:
    """Server-sent events, from position ``since`` (or ``Last-Event-ID``), or from now on."""
    access.require(token, "view")
    last = request.headers.get("last-event-id", "")
    start = int(last) if last.isdecimal() and len(last) < 18 else since
    if start is None:
        newest = await context.db.read(lambda connection: outbox.latest_events(connection, 1))
        start = newest[0].seq if newest else 0

    def keep(event: Event) -> bool:
        return visible(token, event) and subject in (None, event.body.subject())

    async def chunks() -> AsyncIterator[bytes]:
        yield SILENCE  # the answer begins at once
        async for event in context.feed.follow(start, context.stopping, keep):
            yield SILENCE if event is None else sse(info(event), event.kind, str(event.seq))

    return stream(chunks())


def visible(token: Token, event: Event) -> bool:
    """Whether a token may see an event: what is about no service is for tokens of all services."""
    service, environment = getattr(event.body, "service", ""), getattr(event.body, "environment", None)
    if not _bound(token):
        return True
    if not service:
        return False
    return access.sees(token, service, environment) if environment else access.sees(token, service, token.environments)


def info(event: Event) -> EventInfo:
    """An event as people see it."""
    return EventInfo(
        seq=event.seq,
        id=event.id,
        at=event.at,
        actor=event.actor,
        kind=event.kind,
        subject=event.body.subject(),
        sentence=event.body.sentence(),
        body=msgspec.to_builtins(event.body),
    )


def _bound(token: Token) -> bool:
    return token.services != "*" or token.environments != "*"


HANDLERS = [list_events, follow_events]
