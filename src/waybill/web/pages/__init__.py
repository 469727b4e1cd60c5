"""The live page: what the server knows, for people, with or without JavaScript."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from litestar import Router

    from waybill.web.context import Context


def router(context: Context) -> Router:
    """All pages."""
    from waybill.web.pages.routes import pages_router  # which asks ``web.auth``, which asks ``pages.session``

    return pages_router(context)
