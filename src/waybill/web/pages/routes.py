"""The addresses of the pages: reading, logging in and out, and the few buttons."""

from __future__ import annotations

import mimetypes
import re
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import msgspec
from litestar import Request, Response, Router, get, post
from litestar.datastructures import Cookie
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Redirect, ServerSentEvent

from waybill.core.errors import InvalidInputError, NotFoundError, UnauthenticatedError, WaybillError
from waybill.deploy import access
from waybill.deploy.access import Token
from waybill.deploy.store import hosts as host_store
from waybill.deploy.store import rollouts as rollout_store
from waybill.events import outbox
from waybill.infra.db import Connection
from waybill.infra.logs import log
from waybill.web.auth import Door
from waybill.web.context import Context
from waybill.web.live import Live, Look
from waybill.web.pages import render
from waybill.web.pages.details import PER_PAGE
from waybill.web.pages.render import PAGES, Shown, link
from waybill.web.pages.session import Asking, Session, Sessions, good
from waybill.web.pages.snapshot import RECENT, Snapshot, View, load
from waybill.web.pages.visible import narrow
from waybill.web.problems import TooManyError

Asked = Request[Any, Any, Any]
Key = tuple[View, Token]
"""A view and the scope of a token: its rights without its id and name."""

FORM_LIMIT = 16 * 1024
_SAFE_NEXT = re.compile(r"/(?![/\\])[!-~]{0,400}")

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer, forms would be sent with "Origin: null"
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "cache-control": "no-store",
}


class Pages:
    """What the handlers work with; one of it for each server."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.sessions = Sessions(context.db, context.keys, context.public_url)
        self.door = Door(context)
        self.live: Live[Key] = Live(
            context.db, [outbox.EVENTS, host_store.TOLD, host_store.REPORTED], look, context.stopping
        )
        self.assets = render.assets()
        self.headers = dict(HEADERS)
        if self.sessions.secure:
            self.headers["strict-transport-security"] = "max-age=31536000"

    def html(self, text: str, status: int = 200, cookies: list[Cookie] | None = None) -> Response[str]:
        """An answer with every header that a page has."""
        return Response(text, status_code=status, media_type="text/html", headers=self.headers, cookies=cookies)

    def go(self, path: str, cookies: list[Cookie] | None = None) -> Redirect:
        """Send the browser to another page of ours after a form."""
        return Redirect(path, status_code=303, headers=self.headers, cookies=cookies)

    async def page(self, view: View, session: Session, heading: tuple[str, ...], **more: Any) -> Response[str]:
        """A view as a whole page."""

        def read(connection: Connection) -> tuple[Snapshot, Shown]:
            snapshot = load(connection, [view])
            return snapshot, render.show(snapshot, session.token, view)

        snapshot, shown = await self.context.db.read(read)
        return self.whole(snapshot, shown, view, session, heading, **more)

    def whole(
        self, snapshot: Snapshot, shown: Shown, view: View, session: Session, heading: tuple[str, ...], **more: Any
    ) -> Response[str]:
        """A shown view with everything around it."""
        actions = None
        if shown.place is not None:
            earlier = [rollout for rollout in snapshot.about[shown.place.key][0] if rollout.state == "done"]
            actions = {"service": shown.place.service, "environment": shown.place.environment, "earlier": earlier[1:11]}
        values = {
            "live": f"/live?{urlencode({'page': view.page, 'about': view.about})}",
            "older": "",
            "newer": "",
            "turn": ("", ""),
        }
        text = render.page(
            frame=shown.frame,
            version=shown.frame.version,
            title=" ".join(heading),
            heading=heading,
            here=PAGES.get(view.page, ""),
            token=session.token,
            now=snapshot.at,
            actions=actions,
            notice="",
            notice_kind="",
            **values | more,
        )
        return self.html(text, 200 if shown.found else 404)


Site = NamedDependency[Pages]
Who = NamedDependency[Session]


def look(connection: Connection, keys: frozenset[Key]) -> Look[Key]:
    """Read once and render what all these watch."""
    snapshot = load(connection, {view for view, _ in keys})
    return Look(
        at=snapshot.at,
        valid=frozenset(identity for identity, token in snapshot.tokens.items() if good(token)),
        frames={(view, scope): render.show(snapshot, scope, view).frame for view, scope in keys},
    )


def scope_of(token: Token) -> Token:
    """The rights of a token without its name, so that people with the same rights share what is rendered."""
    return Token(id="", name="", role=token.role, services=token.services, environments=token.environments)


async def who(request: Asked, pages: Site) -> Session:
    """Who is logged in.

    Raises:
        UnauthenticatedError: Nobody is.
    """
    session = await pages.sessions.session(request)
    if session is None:
        raise UnauthenticatedError("nobody is logged in.", "Log in.")
    return session


@get("/", name="overview")
async def overview(session: Who, pages: Site) -> Response[str]:
    """Everything at a glance."""
    return await pages.page(View("overview"), session, ("Overview",))


@get("/hosts")
async def hosts(session: Who, pages: Site, page: Annotated[int, QueryParameter(ge=1, le=100_000)] = 1) -> Response[str]:
    """All hosts, a hundred a page."""

    def read(connection: Connection) -> tuple[Snapshot, Shown, int]:
        snapshot = load(connection)
        known = len(narrow(snapshot, session.token).hosts)
        return snapshot, render.show(snapshot, session.token, view), known

    view = View("hosts", str(page))
    snapshot, shown, known = await pages.context.db.read(read)
    links = {
        "newer": f"/hosts?page={page - 1}" if page > 1 else "",
        "older": f"/hosts?page={page + 1}" if known > page * PER_PAGE else "",
        "turn": ("Hosts before", "More hosts"),
    }
    return pages.whole(snapshot, shown, view, session, ("Hosts",), **links)


@get("/rollouts")
async def rollouts(session: Who, pages: Site) -> Response[str]:
    """The newest rollouts."""
    return await pages.page(View("rollouts"), session, ("Rollouts",))


@get("/rollouts/{identity:str}")
async def rollout(session: Who, pages: Site, identity: FromPath[str]) -> Response[str]:
    """One rollout."""
    view = View("rollout", identity[:40])

    def read(connection: Connection) -> tuple[Snapshot, Shown]:
        snapshot = load(connection, [view])
        return snapshot, render.show(snapshot, session.token, view)

    snapshot, shown = await pages.context.db.read(read)
    named = snapshot.named.get(view.about)
    heading = (named.service, named.environment, named.commit[:12]) if named and shown.found else ("Nothing here",)
    return pages.whole(snapshot, shown, view, session, heading)


@get("/environments/{service:str}/{environment:str}")
async def environment(session: Who, pages: Site, service: FromPath[str], environment: FromPath[str]) -> Response[str]:
    """One service in one environment, with buttons for who may press them."""
    service, environment = service[:64], environment[:64]
    return await pages.page(View("environment", f"{service}/{environment}"), session, (service, environment))


@get("/timeline")
async def timeline(
    session: Who, pages: Site, before: Annotated[int | None, QueryParameter(ge=1, le=2**53)] = None
) -> Response[str]:
    """What happened, newest first."""
    view = View("timeline")

    def read(connection: Connection) -> tuple[Snapshot, Shown]:
        snapshot = load(connection)
        if before is not None:
            events = outbox.latest_events(connection, RECENT, before=before)
            snapshot = msgspec.structs.replace(snapshot, events=events)
        return snapshot, render.show(snapshot, session.token, view)

    snapshot, shown = await pages.context.db.read(read)
    full = len(snapshot.events) == RECENT
    links: dict[str, Any] = {
        "newer": "/timeline" if before else "",
        "older": f"/timeline?before={snapshot.events[-1].seq}" if full else "",
        "turn": ("Newest", "Older"),
    }
    if before is not None:
        links["live"] = ""
    return pages.whole(snapshot, shown, view, session, ("Timeline",), **links)


@get("/live")
async def live(
    request: Asked,
    session: Who,
    pages: Site,
    page: FromQuery[str],
    about: FromQuery[str] = "",
    version: FromQuery[str] = "",
) -> Response[Any]:
    """What a page shows, again whenever it changes (server-sent events, WHATWG HTML section 9.2)."""
    if page not in render.VIEWS or len(about) > 200:
        raise NotFoundError("there is no such page to follow.")
    known = request.headers.get("last-event-id") or version
    key = (View(page, about), scope_of(session.token))
    stream = pages.live.watch(key, session.token.id, session.until, known[:64])
    return ServerSentEvent(stream, headers={**pages.headers, "x-accel-buffering": "no"})


@get("/login")
async def ask(request: Asked, pages: Site, next: FromQuery[str] = "/") -> Response[Any]:  # noqa: A002 - as it stands in addresses
    """The log-in page."""
    if await pages.sessions.session(request) is not None:
        return pages.go(_inside(next))
    return _login(pages, next)


@post("/login")
async def login(request: Asked, pages: Site) -> Response[Any]:
    """Exchange a token for a session."""
    form = await request.form()
    text, back = str(form.get("token", ""))[:300], str(form.get("next", "/"))
    address = request.client.host if request.client else "?"
    try:
        token = await pages.door.vouch(text, address)
    except (UnauthenticatedError, TooManyError) as error:
        return _login(pages, back, error)
    return pages.go(_inside(back), [pages.sessions.open(token)])


@post("/logout")
async def logout(pages: Site) -> Response[Any]:
    """Forget the session."""
    return pages.go("/login", [pages.sessions.end()])


@post("/deploy")
async def deploy(request: Asked, session: Who, pages: Site) -> Response[Any]:
    """Deploy a branch or commit."""
    form = await request.form()
    service, place, ref = (_field(form, name) for name in ("service", "environment", "ref"))
    access.require(session.token, "deploy", service, place)
    begun = await pages.context.deployments.deploy(service, place, ref, session.token.actor)
    return pages.go(link("rollouts", begun.id))


@post("/rollback")
async def rollback(request: Asked, session: Who, pages: Site) -> Response[Any]:
    """Go back to a good release."""
    form = await request.form()
    service, place = (_field(form, name) for name in ("service", "environment"))
    access.require(session.token, "deploy", service, place)
    to = str(form.get("to", ""))[:40]
    begun = await pages.context.deployments.rollback(service, place, to, session.token.actor)
    return pages.go(link("rollouts", begun.id))


@post("/cancel")
async def cancel(request: Asked, session: Who, pages: Site) -> Response[Any]:
    """Stop a rollout."""
    form = await request.form()
    identity = _field(form, "rollout")
    meant = await pages.context.db.read(lambda connection: rollout_store.rollout(connection, identity))
    if not access.sees(session.token, meant.service, meant.environment):
        raise NotFoundError(f"no rollout has the id {identity!r}.")
    access.require(session.token, "deploy", meant.service, meant.environment)
    reason = str(form.get("reason", "")).strip()[:200]
    stopped = await pages.context.deployments.cancel(meant.id, session.token.actor, reason)
    return pages.go(link("rollouts", stopped.id))


@get("/static/{name:str}")
async def asset(pages: Site, name: FromPath[str]) -> Response[bytes]:
    """A file that pages load; its address changes with its content."""
    content = pages.assets.get(name)
    if content is None:
        raise NotFoundError("there is no such file.")
    kind = mimetypes.guess_type(name)[0] or "text/plain"
    headers = {**pages.headers, "cache-control": "public, max-age=31536000, immutable"}
    return Response(content, media_type=kind, headers=headers)


def pages_router(context: Context) -> Router:
    """All pages.

    Args:
        context: The server's.
    """
    pages = Pages(context)

    async def same_site(request: Asking, _handler: BaseRouteHandler) -> None:
        if request.scope["method"] not in ("GET", "HEAD"):  # type: ignore[typeddict-item]
            pages.sessions.require_same_site(request)

    def refused(request: Asked, error: WaybillError) -> Response[Any]:
        if isinstance(error, UnauthenticatedError) and request.url.path != "/live":
            return _to_login(pages, request)
        if error.status >= 500:
            log.error("page failed", path=request.url.path, reason=error.reason)
        return _error(pages, error.status, error.reason, error.hint)

    def rejected(_request: Asked, error: HTTPException) -> Response[Any]:
        if error.status_code == 429:
            return _error(
                pages, 429, "too many log-ins were tried from this address.", "Wait a minute, then try again."
            )
        return _error(pages, error.status_code, "this address or form is not right.", "Go back and try again.")

    def failed(request: Asked, error: Exception) -> Response[Any]:
        log.error("page failed", path=request.url.path, exc_info=error)
        return _error(pages, 500, "the server made a mistake.", "Its log says more; try again.")

    return Router(
        path="/",
        route_handlers=[
            overview, hosts, rollouts, rollout, environment, timeline, live, ask, login, logout,
            deploy, rollback, cancel, asset,
        ],
        dependencies={
            "pages": Provide(lambda: pages, sync_to_thread=False),
            "session": Provide(who),
        },
        guards=[same_site],
        exception_handlers={WaybillError: refused, HTTPException: rejected, Exception: failed},
        request_max_body_size=FORM_LIMIT,
        include_in_schema=False,
    )  # fmt: skip


def _to_login(pages: Pages, request: Asked) -> Response[Any]:
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if request.method == "POST":
        return pages.go("/login")
    if request.headers.get("sec-fetch-site") == "cross-site" and request.headers.get("sec-fetch-mode") == "navigate":
        # A SameSite=Strict cookie is not sent when a link in a chat or mail is followed: come again from our own page.
        return pages.html(render.plain("again.html", title="One moment", path=_inside(path)))
    return pages.go(f"/login?next={quote(path)}" if path != "/" else "/login")


def _login(pages: Pages, back: str, error: WaybillError | None = None) -> Response[str]:
    values = {"reason": error.reason, "hint": error.hint} if error else {"reason": "", "hint": ""}
    text = render.plain("login.html", title="Log in", next=_inside(back), **values)
    return pages.html(text, error.status if error else 200)


def _error(pages: Pages, status: int, reason: str, hint: str) -> Response[str]:
    sentence = reason[:1].upper() + reason[1:]
    text = render.plain("error.html", title="That did not work", reason=sentence, hint=hint)
    return pages.html(text, status)


def _field(form: Any, name: str) -> str:
    value = str(form.get(name, "")).strip()
    if not value or len(value) > 400:
        raise InvalidInputError(f"the form needs {name}.", "Go back and fill it in.")
    return value


def _inside(path: str) -> str:
    return path if _SAFE_NEXT.fullmatch(path) else "/"
