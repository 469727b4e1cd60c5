"""The app of the public port: API, webhooks, pages, and what probes and Prometheus ask for."""

from __future__ import annotations

import asyncio
from typing import Any

import sqlalchemy as sa
from litestar import Litestar, Request, Response, Router, get
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from waybill import __version__
from waybill.core.errors import UnavailableError
from waybill.web.api import routers
from waybill.web.auth import Door, unbound
from waybill.web.context import Context
from waybill.web.metrics import Measured
from waybill.web.pages import router as pages
from waybill.web.problems import HANDLERS

BODY_LIMIT = 1024 * 1024
"""Bytes of a request, unless its address says otherwise."""
READY_WITHIN = 3.0


def public_app(context: Context) -> Litestar:
    """The app, ready to be served."""
    door = Door(context)
    app = Litestar(
        route_handlers=[*routers(context, door), _probes(context, door), context.hooks.router(), pages(context)],
        exception_handlers=HANDLERS,
        request_max_body_size=BODY_LIMIT,
        openapi_config=_openapi(),
        state=None,
        logging_config=None,
        debug=False,
    )
    app.asgi_handler = Measured(app.asgi_handler, context.metrics)
    return app


def _probes(context: Context, door: Door) -> Router:
    @get("/healthz", media_type="text/plain", include_in_schema=False)
    async def alive() -> str:
        """Whether the process answers."""
        return "alive\n"

    @get("/readyz", media_type="text/plain", include_in_schema=False)
    async def ready() -> str:
        """Whether work can be done: the database answers, and the server is not stopping."""
        if context.stopping.is_set():
            raise UnavailableError("this server is stopping.")
        try:
            async with asyncio.timeout(READY_WITHIN):
                await context.db.read(lambda connection: connection.execute(sa.select(1)).scalar())
        except (TimeoutError, sa.exc.SQLAlchemyError) as error:
            raise UnavailableError("the database does not answer.", "Look at its log and its disk.") from error
        return "ready\n"

    @get("/metrics", include_in_schema=False, guards=[door.guard])
    async def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Figures for Prometheus."""
        unbound(request.user, "view")
        return Response(await context.metrics.page(context.db), media_type=context.metrics.media_type)

    return Router("/", route_handlers=[alive, ready, metrics])


def _openapi() -> OpenAPIConfig:
    scheme = SecurityScheme(type="http", scheme="bearer", description="A token: waybill token create.")
    return OpenAPIConfig(
        title="Waybill",
        version=__version__,
        path="/api/schema",
        use_handler_docstrings=True,
        render_plugins=[JsonRenderPlugin()],
        components=Components(security_schemes={"token": scheme}),
    )
