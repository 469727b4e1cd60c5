"""Refusals over HTTP: problem documents (RFC 9457), the same sentences as on the command line."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from waybill.core.errors import WaybillError
from waybill.infra.logs import log

MEDIA_TYPE = "application/problem+json"


def problem(status: int, detail: str, hint: str = "", headers: dict[str, str] | None = None) -> Response[bytes]:
    """A problem document: ``detail`` says what was wrong, the extension member ``hint`` what to do next."""
    told = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    if hint:
        told["hint"] = hint
    return Response(msgspec.json.encode(told), status_code=status, media_type=MEDIA_TYPE, headers=headers)


def refused(_request: Request[Any, Any, Any], error: WaybillError) -> Response[bytes]:
    """Answer with one of our own errors."""
    return problem(error.status, error.reason, error.hint)


def unroutable(_request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Answer with an error of the web framework: no such path, wrong method, malformed body."""
    kept = {name: value for name, value in (error.headers or {}).items() if name.lower() in ("allow", "retry-after")}
    return problem(error.status_code, error.detail, headers=kept)


def failed(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer to a fault of ours, which goes to the log and not to the sender."""
    log.error("request failed", path=request.url.path, exc_info=error)
    return problem(500, "the server failed at this.", "Its log says why.")


HANDLERS: dict[Any, Any] = {WaybillError: refused, HTTPException: unroutable, Exception: failed}
"""For ``Litestar(exception_handlers=…)``."""
