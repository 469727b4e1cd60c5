"""``/api/doctor``: faults that the server can see of itself, each with its fix."""

from __future__ import annotations

from litestar import get, post

from waybill import __version__
from waybill.core.clock import stamp
from waybill.deploy import access
from waybill.events import outbox
from waybill.infra.db import Connection
from waybill.web.api.common import Ours, Who, changed
from waybill.web.diagnosis import examine
from waybill.wire.api import Diagnosis


@get("/doctor")
async def doctor(context: Ours, token: Who) -> Diagnosis:
    """What the server finds wrong with itself, its hosts and its hooks."""
    access.require(token, "administer")
    return Diagnosis(
        at=stamp(),
        version=__version__,
        public_url=context.public_url,
        agents_url=context.agents_url,
        findings=await examine(context),
    )


@post("/work/retry", status_code=200)
async def retry_work(context: Ours, token: Who) -> list[str]:
    """Try again what was set aside after it kept failing; the answer names it."""
    access.require(token, "administer")

    def retry(connection: Connection) -> list[str]:
        rows = outbox.set_aside(connection)
        for row in rows:
            outbox.wake(connection, row.handler, row.key)
        names = [f"{row.handler} {row.key}" for row in rows]
        if names:
            changed(connection, "work", f"{len(names)} rows", f"tried again: {', '.join(names)[:1000]}", token)
        return names

    return await context.db.write(retry)


HANDLERS = [doctor, retry_work]
