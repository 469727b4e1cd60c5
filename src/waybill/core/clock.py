"""Times: UTC, RFC 3339 with milliseconds, in every file, message and table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def now() -> datetime:
    """The present moment, timezone-aware UTC."""
    return datetime.now(UTC)


def stamp(moment: datetime | None = None) -> str:
    """A moment as ``2026-11-20T12:59:01.123Z``; the present one when none is given. Such strings sort by time."""
    moment = (moment or now()).astimezone(UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def parse(text: str) -> datetime:
    """The moment that ``stamp`` wrote; ValueError when the text is no RFC 3339 time with an offset."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"time without offset: {text!r}")
    return moment.astimezone(UTC)


def later(seconds: float, start: datetime | None = None) -> str:
    """The stamp of the moment that many seconds after ``start`` (or now)."""
    return stamp((start or now()) + timedelta(seconds=seconds))
