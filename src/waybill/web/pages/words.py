"""How states, times and sizes are said to a tired person: a word, a sign and a colour, never the colour alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from waybill.core.clock import parse

Kind = Literal["ok", "bad", "warn", "busy", "idle"]
_SIGNS: dict[str, str] = {"ok": "✓", "bad": "✕", "warn": "!", "busy": "…", "idle": "○"}


class Badge(msgspec.Struct, frozen=True):
    """A state in words.

    Attributes:
        kind: Which colour and sign.
        text: What it says.
    """

    kind: Kind
    text: str

    @property
    def sign(self) -> str:
        """The sign beside the words; screen readers pass it over."""
        return _SIGNS[self.kind]


_ROLLOUT: dict[str, Badge] = {
    "waiting": Badge("idle", "Waiting"),
    "building": Badge("busy", "Building"),
    "running": Badge("busy", "Running"),
    "reverting": Badge("warn", "Going back"),
    "done": Badge("ok", "Done"),
    "failed": Badge("bad", "Failed"),
    "reverted": Badge("bad", "Reverted"),
    "cancelled": Badge("idle", "Cancelled"),
    "superseded": Badge("idle", "Superseded"),
}
_HOST: dict[str, Badge] = {
    "untold": Badge("idle", "Not told yet"),
    "waiting": Badge("busy", "Told"),
    "fetching": Badge("busy", "Fetching"),
    "preparing": Badge("busy", "Preparing"),
    "starting": Badge("busy", "Starting"),
    "probing": Badge("busy", "Checking health"),
    "switching": Badge("busy", "Switching"),
    "live": Badge("ok", "Live"),
    "failed": Badge("bad", "Failed"),
    "abandoned": Badge("idle", "Abandoned"),
    "refused": Badge("bad", "Refused"),
    "held": Badge("warn", "Held on the host"),
    "removed": Badge("idle", "Removed"),
}


def rollout_badge(state: str) -> Badge:
    """A rollout's state in words."""
    return _ROLLOUT.get(state) or Badge("idle", state)


def host_badge(state: str) -> Badge:
    """A host's state within a rollout in words."""
    return _HOST.get(state) or Badge("idle", state)


def names(items: Sequence[str], most: int = 3) -> str:
    """``a, b and c``, or ``a, b, c and 4 more``."""
    if len(items) > most:
        return f"{', '.join(items[:most])} and {len(items) - most} more"
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def count(number: int, word: str) -> str:
    """``1 host``, ``2 hosts``."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def size(octets: int) -> str:
    """Bytes in binary units."""
    value = float(octets)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def moment(text: str) -> str:
    """A stamp as people read it: date, time and offset."""
    return f"{text[:10]} {text[11:19]} +00:00" if text else ""


def age(then: str, now: str) -> str:
    """How long ago a stamp was; ``live.js`` says it in the same words."""
    seconds = (parse(now) - parse(then)).total_seconds()
    for limit, divisor, unit in ((5, 0, ""), (60, 1, "s"), (3600, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{int(seconds / divisor)} {unit} ago" if divisor else "just now"
    return f"{int(seconds / 86400)} days ago"


def apart(later: str, earlier: str) -> int | None:
    """Whole milliseconds between two stamps; None where one is missing or no time."""
    try:
        return round((parse(later) - parse(earlier)).total_seconds() * 1000)
    except ValueError:
        return None


def milliseconds(value: int) -> str:
    """``1,234 ms``."""
    return f"{value:,} ms"


def skew(value: int) -> Badge:
    """How far a host's clock is from ours, in milliseconds, ahead when positive."""
    seconds = abs(value) / 1000
    if seconds < 2:
        return Badge("ok", "Clock agrees")
    if seconds < 120:
        amount = f"{seconds:.0f} s"
    elif seconds < 7200:
        amount = f"{seconds / 60:.0f} min"
    else:
        amount = f"{seconds / 3600:.0f} h"
    return Badge("warn", f"Clock {amount} {'ahead' if value > 0 else 'behind'}")
