"""``waybill events``: what happened."""

from __future__ import annotations

from typing import Annotated

import cyclopts

from waybill.cli.output import Json, emit, emit_line
from waybill.wire.api import EventInfo


def events(
    *,
    follow: Annotated[bool, cyclopts.Parameter(name=["--follow", "-f"], negative=())] = False,
    about: str | None = None,
    limit: int = 30,
    json: Json = False,
) -> None:
    """Show what happened, and with -f what happens.

    Args:
        follow: Stay, and show new events as they come.
        about: Only what is about this: service/environment, a host, a repository.
        limit: How many past events at most.
        json: Print JSON; with -f, one object a line.
    """
    from waybill.cli.client import Client
    from waybill.core.errors import UnavailableError

    client = Client()
    found = client.call("GET", "/api/events", list[EventInfo], limit=limit, subject=about)
    if json and not follow:
        emit(found)
        return
    if not found and not follow:
        print("Nothing has happened yet.")
    for one in found:
        _tell(one, json=json)
    if not follow:
        return
    position = found[-1].seq if found else 0
    for one in client.follow("/api/events/stream", EventInfo, since=position, subject=about):
        _tell(one, json=json)
    raise UnavailableError("the server ended the stream.", "It may be restarting; run the command again.")


def _tell(one: EventInfo, *, json: bool) -> None:
    if json:
        emit_line(one)
        return
    print(f"{one.at}  {one.sentence}  [{one.actor}]", flush=True)
