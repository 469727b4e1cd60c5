"""``waybill logs``: the log of a service, from its hosts."""

from __future__ import annotations

import sys
from typing import Annotated

import cyclopts

from waybill.cli.output import Json, emit_line, target

LONGEST = 3600


def logs(
    of: str,
    /,
    *,
    follow: Annotated[bool, cyclopts.Parameter(name=["--follow", "-f"], negative=())] = False,
    host: str | None = None,
    lines: Annotated[int, cyclopts.Parameter(name=["--lines", "-n"])] = 100,
    json: Json = False,
) -> None:
    """Show the log of a service, from all its hosts.

    Args:
        of: service/environment.
        follow: Stay, and show new lines as they come.
        host: Only this host.
        lines: Past lines of each host.
        json: Print one JSON object a line.
    """
    from waybill.cli.client import Client
    from waybill.wire.api import LogLine

    service, environment = target(of)
    client = Client()
    while True:
        seconds = LONGEST if follow else 0
        path = f"/api/logs/{service}/{environment}"
        for line in client.follow(path, LogLine, host=host, lines=lines, seconds=seconds):
            if json:
                emit_line(line)
            elif line.note:
                print(f"{line.host or 'waybill'}: {line.note}", file=sys.stderr)
            else:
                print(f"{line.host} | {line.line}", flush=follow)
        if not follow:
            return
        lines = 0
