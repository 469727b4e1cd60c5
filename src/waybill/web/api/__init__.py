"""The API, under ``/api``: one module for each thing that it is about.

Every address needs a token, except ``/api/enrol``, whose proof is its own.
"""

from __future__ import annotations

from typing import Any

from litestar import Request, Router
from litestar.di import Provide

from waybill.deploy.access import Token
from waybill.web.api import (
    builds,
    doctor,
    enrolment,
    events,
    grants,
    hooks,
    hosts,
    logs,
    races,
    repositories,
    rollouts,
    status,
    tokens,
)
from waybill.web.auth import Attempts, Door
from waybill.web.context import Context


def routers(context: Context, door: Door) -> list[Router]:
    """The addresses that need a token, and those that do not."""
    attempts = Attempts()
    given = {"context": Provide(lambda: context, sync_to_thread=False)}
    guarded = Router(
        "/api",
        route_handlers=[
            *builds.HANDLERS,
            *doctor.HANDLERS,
            *enrolment.HANDLERS,
            *events.HANDLERS,
            *grants.HANDLERS,
            *hooks.HANDLERS,
            *hosts.HANDLERS,
            *logs.HANDLERS,
            *races.HANDLERS,
            *repositories.HANDLERS,
            *rollouts.HANDLERS,
            *status.HANDLERS,
            *tokens.HANDLERS,
        ],
        guards=[door.guard],
        dependencies={**given, "token": Provide(_token, sync_to_thread=False)},
        security=[{"token": []}],
    )
    unguarded = Router(
        "/api",
        route_handlers=[enrolment.enrol],
        dependencies={**given, "attempts": Provide(lambda: attempts, sync_to_thread=False)},
    )
    return [guarded, unguarded]


def _token(request: Request[Token, Any, Any]) -> Token:
    return request.user
