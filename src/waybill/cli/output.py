"""What commands print: tables for people, JSON for programs, times as they stand and how long ago.

Rich leaves colours out where the output is no terminal, and where NO_COLOR is set.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import cyclopts
import msgspec

from waybill.core.clock import now, parse
from waybill.core.errors import InvalidInputError

Json = Annotated[bool, cyclopts.Parameter(negative=())]
"""The switch ``--json`` of every command."""
STYLES = {
    "live": "green", "done": "green", "healthy": "green", "fine": "green", "yes": "green",
    "failed": "red", "failing": "red", "refused": "red", "fault": "red", "revoked": "red", "stopped": "red",
    "reverted": "yellow", "reverting": "yellow", "warning": "yellow", "held": "yellow", "no": "yellow",
    "restarting": "yellow", "cancelled": "yellow", "superseded": "dim", "unknown": "dim", "untold": "dim",
}  # fmt: skip


def emit(value: Any) -> None:
    """Print a value as JSON."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def emit_line(value: Any) -> None:
    """Print a value as one line of JSON, at once."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], nothing: str) -> None:
    """Print rows under their headings, or the sentence that there are none."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = list(rows)
    if not found:
        print(nothing)
        return
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in found:
        made.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    console = Console(soft_wrap=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # a pipe has no width: grep must find whole lines
    console.print(made)


def ago(stamp: str) -> str:
    """How long ago a moment was."""
    if not stamp:
        return "never"
    try:
        seconds = (now() - parse(stamp)).total_seconds()
    except ValueError:
        return stamp
    for size, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {word} ago"
    return "now" if seconds < 2 else f"{seconds:.0f} s ago"


def size(count: int) -> str:
    """Bytes for people, in powers of 1024."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def labels(pairs: Sequence[str]) -> dict[str, str]:
    """Labels from words of the form ``name=value``.

    Raises:
        InvalidInputError: One has another form.
    """
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise InvalidInputError(f"{pair!r} is no label.", "Labels are written name=value, for example role=web.")
        found[name] = value
    return found


def target(text: str) -> tuple[str, str]:
    """(service, environment) from ``service/environment``.

    Raises:
        InvalidInputError: It has another form.
    """
    service, slash, environment = text.partition("/")
    if not (service and slash and environment) or "/" in environment:
        raise InvalidInputError(f"{text!r} names no service in an environment.", "Write it as hello/production.")
    return service, environment
