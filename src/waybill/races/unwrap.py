"""What others wrap around a line: JSON, time stamps, names of hosts and containers, colours.

Each line becomes (stream, text): the stream tells apart the processes that share a log, the text is what the process
wrote. Prefixes that are not known here stay in the text; ``scan`` deals with those.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import msgspec

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")
ISO = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d| [A-Z]{3,4})?"
PREFIXES = (
    # Each takes one blank at most after itself: the blanks of a stack's lines are its own.
    re.compile(rf"(?P<time>{ISO}) (?P<stream>stdout|stderr) (?P<tag>[FP])(?: |$)"),  # CRI
    re.compile(rf"(?P<time>{ISO}) (?P<stream>\d\d)[OE](?:[ +]|$)"),  # a GitLab job with time stamps
    re.compile(
        rf"(?:<\d+>)?(?:[A-Z][a-z]{{2}} [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)?|(?:[A-Z][a-z]{{2}} )?(?P<time>{ISO}))"
        r" (?P<stream>[^\s:]+ [^\s\[:]+(?:\[\d+\])?):(?: |$)"
    ),  # journald and syslog, short and ISO
    re.compile(r"(?P<stream>[IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +(?P<pid>\d+) [^\]\s]+:\d+\](?: |$)"),  # klog
    re.compile(r"(?P<stream>[A-Za-z0-9][\w.-]*) *\| ?(?=.|$)"),  # docker compose
    re.compile(rf"\[?(?P<time>{ISO})\]?:?(?: |\t|$)"),
    re.compile(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d(?:\.\d+)? "),  # Go's log package
)
PEEL = 4
"""Prefixes that may stand before one another."""


class Line(msgspec.Struct, frozen=True):
    """One line of one process.

    Attributes:
        stream: Which process, as far as the line says.
        text: What it wrote.
        seen: When, RFC 3339 UTC; empty when the line does not say.
        partial: The line goes on in the stream's next one.
    """

    stream: str
    text: str
    seen: str = ""
    partial: bool = False


class _Wrapped(msgspec.Struct, frozen=True):
    """The fields of docker, journald, ``go test -json`` and common log shippers; all others are passed over."""

    log: str | None = None
    MESSAGE: Any = None
    Output: str | None = None
    message: str | None = None
    Action: str | None = None
    Package: str = ""
    stream: str = ""
    time: Any = ""
    Time: str = ""
    pid: Any = msgspec.field(default="", name="_PID")
    host: Any = msgspec.field(default="", name="_HOSTNAME")
    unit: Any = msgspec.field(default="", name="SYSLOG_IDENTIFIER")
    container: Any = msgspec.field(default="", name="CONTAINER_ID")
    realtime: Any = msgspec.field(default="", name="__REALTIME_TIMESTAMP")


_decode = msgspec.json.Decoder(_Wrapped).decode


def lines(raw: bytes) -> list[Line]:
    """The lines that one line of a log holds: one as a rule, several when a JSON string has line ends."""
    text = raw.decode(errors="replace").rstrip("\r\n").lstrip("\ufeff")
    if text.startswith("{") and text.endswith("}"):
        return _from_json(text)
    return [_peeled(text)]


def entry(fields: dict[str, str]) -> list[Line]:
    """The lines of one entry of ``journalctl -o export``."""
    stream = f"{fields.get('_HOSTNAME', '')} {fields.get('SYSLOG_IDENTIFIER', '')}[{fields.get('_PID', '')}]"
    seen = _epoch(fields.get("__REALTIME_TIMESTAMP", ""))
    return _split(fields.get("MESSAGE", ""), stream, seen)


def _from_json(text: str) -> list[Line]:
    try:
        found = _decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return [Line("", text)]
    if found.log is not None:
        made = _split(found.log, f"docker {found.stream}", _stamp(found.time))
        return _mark_partial(made, whole=found.log.endswith("\n"))
    if found.MESSAGE is not None:
        message = _text(found.MESSAGE)
        stream = f"{found.host} {found.unit}[{found.pid}] {found.container}"
        return _split(message, stream, _epoch(found.realtime))
    if found.Output is not None:
        # Not the test's name: the report of a race stands under whichever test ran just then.
        made = _split(found.Output, f"go {found.Package}", _stamp(found.Time))
        return _mark_partial(made, whole=found.Output.endswith("\n"))
    if found.message is not None:
        return _split(found.message, "", _stamp(found.time or found.Time))
    return [Line("", text)] if found.Action is None else []


def _mark_partial(made: list[Line], *, whole: bool) -> list[Line]:
    return made if whole or not made else [*made[:-1], msgspec.structs.replace(made[-1], partial=True)]


def _text(value: Any) -> str:
    """A journal's MESSAGE: text, or a list of bytes where it has colours or is no UTF-8."""
    if isinstance(value, list):
        return bytes(byte for byte in value if isinstance(byte, int) and 0 <= byte < 256).decode(errors="replace")
    return value if isinstance(value, str) else ""


def _split(text: str, stream: str, seen: str) -> list[Line]:
    made = []
    for part in text.removesuffix("\n").split("\n"):
        inner = _peeled(part)
        made.append(Line(f"{stream} {inner.stream}".strip(), inner.text, inner.seen or seen, inner.partial))
    return made


def _peeled(text: str) -> Line:
    text = text.rstrip("\r")
    if "\x1b" in text:
        text = ESCAPES.sub("", text)
    if "\r" in text:
        text = text.rpartition("\r")[2]
    text = CONTROLS.sub("", text)
    stream, seen, partial = "", "", False
    for _ in range(PEEL):
        for prefix in PREFIXES:
            found = prefix.match(text)
            if found:
                break
        else:
            break
        groups = found.groupdict()
        text = text[found.end() :]
        stream = " ".join(part for part in (stream, groups.get("stream"), groups.get("pid")) if part)
        seen = seen or _stamp(groups.get("time") or "")
        partial = groups.get("tag") == "P"
    return Line(stream, text, seen, partial)


def _stamp(value: Any) -> str:
    """RFC 3339 UTC of a time that says its offset; empty for others."""
    if not isinstance(value, str) or len(value) < 20:
        return ""
    text = re.sub(r"([.,]\d{1,6})\d*", r"\1", value.replace(",", "."))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return ""
    return "" if moment.tzinfo is None else _written(moment)


def _epoch(value: Any) -> str:
    """The same of microseconds since 1970."""
    try:
        return _written(datetime.fromtimestamp(int(value) / 1e6, UTC))
    except (ValueError, TypeError, OverflowError, OSError):
        return ""


def _written(moment: datetime) -> str:
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:
        return ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"
