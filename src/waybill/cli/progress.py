"""A rollout on the terminal while it goes on: one row for each host, or lines where no terminal is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from waybill.cli.output import STYLES
from waybill.core.errors import UnavailableError
from waybill.wire.api import RolloutDetail

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from waybill.cli.client import Client

PAUSE = 0.2
PATIENCE = 120.0
"""Seconds for which a server that does not answer is asked again."""


def follow(client: Client, identity: str, *, silent: bool = False) -> RolloutDetail:
    """Show a rollout until it has ended; returns how it ended.

    Raises:
        UnavailableError: The server has not answered for two minutes.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if silent:
        return _until_ended(client, identity, lambda _: None)
    if console.is_terminal:
        return _live(client, identity, console)
    return _until_ended(client, identity, _lines())


def _until_ended(client: Client, identity: str, show: Callable[[RolloutDetail], None]) -> RolloutDetail:
    heard = time.monotonic()
    while True:
        try:
            detail = client.call("GET", f"/api/rollouts/{identity}", RolloutDetail)
            heard = time.monotonic()
        except UnavailableError:
            if time.monotonic() - heard > PATIENCE:
                raise
            time.sleep(1)  # the server restarts; the rollout goes on without it
            continue
        show(detail)
        if detail.ended:
            return detail
        time.sleep(PAUSE)


def _lines() -> Callable[[RolloutDetail], None]:
    said: dict[str, str] = {}

    def show(detail: RolloutDetail) -> None:
        one = detail.rollout
        key = f"{one.service}/{one.environment} {one.commit[:12]}"
        for name, state, reason in [(key, one.state, one.reason)] + [(h.host, h.state, h.reason) for h in detail.hosts]:
            if said.get(name) != state:
                said[name] = state
                print(f"{name}: {state}" + (f": {reason}" if reason else ""), flush=True)

    return show


def _live(client: Client, identity: str, console: Console) -> RolloutDetail:
    from rich.live import Live

    with Live(console=console, refresh_per_second=8, transient=False) as live:
        return _until_ended(client, identity, lambda detail: live.update(_table(detail)))


def _table(detail: RolloutDetail) -> Table:
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    one = detail.rollout
    made = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        made.add_column(overflow="fold")
    key = Text(f"{one.service}/{one.environment} {one.commit[:12]}", style="bold")
    state = Text(one.state, style=STYLES.get(one.state, ""))
    made.add_row(key, state if detail.ended else Spinner("dots", state), Text(one.reason))
    for host in detail.hosts:
        made.add_row(Text(f"  {host.host}"), Text(host.state, style=STYLES.get(host.state, "")), Text(host.reason))
    return made
