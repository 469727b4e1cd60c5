"""``/api/doctor``: faults that the server can see of itself, each with its fix."""

from __future__ import annotations

from litestar import get

from waybill import __version__
from waybill.core.clock import stamp
from waybill.deploy import access
from waybill.web.api.common import Ours, Who
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


HANDLERS = [doctor]
