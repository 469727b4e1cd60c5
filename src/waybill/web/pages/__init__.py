"""The live page: what the server knows, for people, with or without JavaScript."""

from waybill.web.pages.routes import router

__all__ = ["router"]
