"""Errors as problem documents (RFC 9457), the same sentence that the command line prints.

What nobody foresaw is logged with its trace and answered with a request id by which it can be found; no trace leaves
the server.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from sqlalchemy.exc import DataError

from waybill.core.errors import WaybillError
from waybill.infra.logs import log, scrub

MEDIA = "application/problem+json"


class TooManyError(WaybillError):
    """Too often from one address."""

    status = 429
    exit_code = 7

    def __init__(self, reason: str, hint: str, seconds: int) -> None:
        super().__init__(reason, hint)
        self.seconds = seconds


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The document; ``request`` is the id under which the server's log has the request."""

    title: str
    status: int
    detail: str
    hint: str = ""
    request: str = ""
    type: str = "about:blank"


def answer(
    request: Request[Any, Any, Any], status: int, detail: str, hint: str = "", headers: dict[str, str] | None = None
) -> Response[Problem]:
    """A problem document as the answer to a request."""
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    identity = request.scope.get("state", {}).get("request_id", "")
    body = Problem(title=title, status=status, detail=detail, hint=hint, request=identity)
    return Response(body, status_code=status, media_type=MEDIA, headers=headers)


def refused(request: Request[Any, Any, Any], error: WaybillError) -> Response[Problem]:
    """A refusal of our own."""
    headers = {}
    if error.status == 401:
        headers["www-authenticate"] = 'Bearer realm="waybill"'
    if isinstance(error, TooManyError):
        headers["retry-after"] = str(error.seconds)
    if error.status >= 500:
        log.error("request failed", reason=error.reason)
    return answer(request, error.status, error.reason, error.hint, headers)


def rejected(request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    """A refusal of the framework's: no such route, method or field, or a body over the limit."""
    path = request.scope["path"]
    sentences = {
        404: (f"there is nothing at {path}.", "/api/schema/openapi.json lists what there is."),
        405: (f"{request.method} is not possible at {path}.", "/api/schema/openapi.json lists what is."),
        413: ("the body is over the limit of this address.", ""),
    }
    if isinstance(error, ValidationException):
        return answer(request, error.status_code, _fields(error), "/api/schema/openapi.json describes the fields.")
    detail, hint = sentences.get(error.status_code, (f"the request is malformed: {error.detail.rstrip('.')}.", ""))
    if error.status_code >= 500:
        return failed(request, error)
    return answer(request, error.status_code, str(scrub(detail)), hint, dict(error.headers or {}))


def failed(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """A fault of ours."""
    if isinstance(error, TimeoutError):
        return answer(request, 408, "the rest of the request did not come in time.")
    log.error("request failed", path=request.scope["path"], exc_info=error)
    return answer(request, 500, "the server made a mistake.", "The server's log has it under this answer's request id.")


def unfit(request: Request[Any, Any, Any], error: DataError) -> Response[Problem]:
    """A value that the database cannot hold."""
    log.info("request refused", reason=str(error.orig))
    return answer(request, 400, "a value is too long, or holds characters that cannot be kept.")


def _fields(error: ValidationException) -> str:
    found = error.extra if isinstance(error.extra, list) else []
    parts = []
    for item in found:
        key, message = item.get("key", ""), item.get("message", "")
        if key == "data" and message == "'data'":
            parts.append("a JSON body is needed")
        elif key == "data" or not key:
            parts.append(str(message))
        else:
            parts.append(f"{key}: {message}")
    return "the request is wrong: " + ("; ".join(parts) or error.detail).rstrip(".") + "."


HANDLERS: dict[int | type[Exception], Any] = {
    WaybillError: refused,
    DataError: unfit,
    HTTPException: rejected,
    Exception: failed,
}
