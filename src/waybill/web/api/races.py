"""``/api/races``: test machines send data race reports; the server files them, with a token that stays here."""

from __future__ import annotations

from litestar import get, post
from litestar.params import FromPath, FromQuery, JSONBody

from waybill.core.errors import TooLargeError
from waybill.deploy import access
from waybill.races import service, store
from waybill.web.api.common import HOST, Ours, Who, named
from waybill.web.auth import unbound
from waybill.wire.races import PostedRaces, RaceDecision, RaceInfo, Taken

LIMIT = 16 * 1024 * 1024
"""Bytes of reports at once."""
MOST = 1000


@post("/races", request_max_body_size=LIMIT, status_code=200)
async def post_races(context: Ours, token: Who, data: JSONBody[PostedRaces]) -> Taken:
    """Keep reports and file them; those that were sent before change nothing."""
    access.require(token, "report")
    named("host", data.host, HOST)
    if len(data.reports) > MOST:
        raise TooLargeError(f"{len(data.reports)} reports at once are too many; {MOST} are allowed.")
    return Taken(new=await context.db.write(lambda connection: service.take(connection, data, token.actor)))


@get("/races")
async def list_races(context: Ours, token: Who, only: FromQuery[str | None] = None) -> list[RaceInfo]:
    """The newest reports; only those in one state (new, filed, quarantine, discarded), where given."""
    unbound(token, "view")
    return await context.db.read(lambda connection: store.infos(connection, only))


@get("/races/{report:str}")
async def get_race(context: Ours, token: Who, report: FromPath[str]) -> RaceInfo:
    """One report with its text, by its id or the beginning of it."""
    unbound(token, "view")
    return await context.db.read(lambda connection: store.info(connection, report))


@post("/races/{report:str}", status_code=200)
async def decide_race(context: Ours, token: Who, report: FromPath[str], data: JSONBody[RaceDecision]) -> RaceInfo:
    """Attach a report in quarantine to an issue, open one for it, or discard it."""
    unbound(token, "deploy")
    return await context.db.write(lambda connection: service.decide(connection, report, data, token.actor))


HANDLERS = [post_races, list_races, get_race, decide_race]
