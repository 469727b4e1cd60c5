"""From shown values to HTML: fragments that the page is made of and that the live stream sends again.

Everything printed is escaped by Jinja, and whatever could lie about its own look (controls, bidirectional overrides,
invisible characters) is spelled out as its code point first, in the one place through which all expressions pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from waybill.deploy.access import RIGHTS, Token
from waybill.deploy.model import ENDED
from waybill.web.live import Frame
from waybill.web.pages import words
from waybill.web.pages.details import PER_PAGE, host_rows, rollout_page
from waybill.web.pages.present import Place, headline, places, timeline_badge
from waybill.web.pages.snapshot import Snapshot, View
from waybill.web.pages.visible import narrow
from waybill.web.pages.words import Badge

HERE = Path(__file__).resolve().parent.parent
SHORT = 15
"""Rows that the overview shows of a long list."""
PAGES = {"overview": "Overview", "hosts": "Hosts", "rollouts": "Rollouts", "timeline": "Timeline"}
ADDRESSES = {"overview": "/", "hosts": "/hosts", "rollouts": "/rollouts", "timeline": "/timeline"}


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A rendered view.

    Attributes:
        frame: Its fragments, in order.
        found: Whether there is anything by this name for this token.
        place: The service and environment that buttons act on, where the token may.
    """

    frame: Frame
    found: bool = True
    place: Place | None = None


def inert(value: Any) -> Any:
    """A text with its control, bidirectional and invisible characters spelled out; other values as they are."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(char if char.isprintable() or char in "\n\t" else f"⟨U+{ord(char):04X}⟩" for char in value)


def link(kind: str, *parts: str) -> str:
    """Address of a page below ``/kind/``; whatever is in a name stays in its own segment."""
    return f"/{kind}/" + "/".join(quote(part, safe="") for part in parts)


def assets() -> dict[str, bytes]:
    """The files that pages load, by name."""
    return {file.name: file.read_bytes() for file in (HERE / "static").iterdir() if file.is_file()}


def environment() -> Environment:
    """Jinja as the pages use it."""
    marks = {name: hashlib.sha256(content).hexdigest()[:12] for name, content in assets().items()}
    env = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=inert,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    for function in (words.moment, words.age, words.count, words.milliseconds, words.names):
        env.filters[function.__name__] = function
    env.globals["link"] = link
    env.globals["static"] = lambda name: f"/static/{name}?v={marks[name]}"
    return env


ENV = environment()


def show(snapshot: Snapshot, token: Token, view: View) -> Shown:
    """A view as this token may see it."""
    seen = narrow(snapshot, token)
    return VIEWS[view.page](seen, token, view)


def page(**values: Any) -> str:
    """A whole page around fragments."""
    fragments = [Markup(html) for html in values.pop("frame").fragments.values()]  # noqa: S704 - made by Jinja, escaped
    pages = [(name, ADDRESSES[key]) for key, name in PAGES.items()]
    return ENV.get_template("page.html").render(fragments=fragments, pages=pages, **values)


def plain(template: str, **values: Any) -> str:
    """A page without a session."""
    return ENV.get_template(template).render(**values)


def _overview(snapshot: Snapshot, _token: Token, _view: View) -> Shown:
    shown = places(snapshot)
    hosts = host_rows(snapshot)
    return _shown(
        snapshot,
        ["headline", "services", "refused", "aside", "hosts", "rollouts", "timeline"],
        short=True,
        headline=headline(snapshot, shown),
        places=shown,
        refused=snapshot.refused[:5],
        aside=snapshot.aside,
        bad_badge=Badge("bad", "Set aside"),
        hosts=hosts[:SHORT],
        hosts_total=len(hosts),
        rollouts=[(rollout, words.rollout_badge(rollout.state)) for rollout in snapshot.recent[:SHORT]],
        timeline_events=[(event, timeline_badge(event)) for event in snapshot.events[:SHORT]],
    )


def _hosts(snapshot: Snapshot, _token: Token, view: View) -> Shown:
    rows = host_rows(snapshot)
    first = PER_PAGE * (int(view.about or 1) - 1)
    return _shown(snapshot, ["hosts"], short=False, hosts=rows[first : first + PER_PAGE], hosts_total=0)


def _rollouts(snapshot: Snapshot, _token: Token, _view: View) -> Shown:
    rows = [(rollout, words.rollout_badge(rollout.state)) for rollout in snapshot.recent]
    return _shown(snapshot, ["rollouts"], short=False, rollouts=rows)


def _timeline(snapshot: Snapshot, _token: Token, _view: View) -> Shown:
    events = [(event, timeline_badge(event)) for event in snapshot.events]
    return _shown(snapshot, ["timeline"], short=False, timeline_events=events)


def _rollout(snapshot: Snapshot, token: Token, view: View) -> Shown:
    rollout = snapshot.named.get(view.about)
    if rollout is None:
        return _missing(snapshot)
    may_cancel = "deploy" in RIGHTS[token.role] and rollout.state not in ENDED
    shown = rollout_page(snapshot, rollout)
    return _shown(snapshot, ["rollout", "outcomes", "moments"], shown=shown, may_cancel=may_cancel)


def _place(snapshot: Snapshot, token: Token, view: View) -> Shown:
    place = next((place for place in places(snapshot) if place.key == view.about), None)
    if place is None:
        return _missing(snapshot)
    rollouts, events = snapshot.about.get(view.about, ([], []))
    shown = _shown(
        snapshot,
        ["place", "rollouts", "timeline"],
        short=True,
        place=place,
        rollouts=[(rollout, words.rollout_badge(rollout.state)) for rollout in rollouts[:SHORT]],
        timeline_events=[(event, timeline_badge(event)) for event in events[: 2 * SHORT]],
    )
    may = "deploy" in RIGHTS[token.role]
    return msgspec.structs.replace(shown, place=place if may else None)


def _missing(snapshot: Snapshot) -> Shown:
    return msgspec.structs.replace(_shown(snapshot, ["missing"]), found=False)


def _shown(snapshot: Snapshot, fragments: list[str], **values: Any) -> Shown:
    rendered = {
        name: ENV.get_template(f"fragments/{name}.html").render(now=snapshot.at, **values).strip() for name in fragments
    }
    return Shown(frame=Frame(rendered))


VIEWS: dict[str, Callable[[Snapshot, Token, View], Shown]] = {
    "overview": _overview,
    "hosts": _hosts,
    "rollouts": _rollouts,
    "timeline": _timeline,
    "rollout": _rollout,
    "environment": _place,
}
