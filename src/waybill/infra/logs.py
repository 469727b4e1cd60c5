"""Structured logs on standard error, one line an event, with a redactor before the writer.

Whatever is logged under a name that sounds like a secret is replaced, and so is every text that looks like one of our
own tokens or an age key; libraries that use ``logging`` go the same way.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

_NAMES = re.compile(r"secret|token|password|authorization|cookie|signature|identity|private", re.IGNORECASE)
_SHAPES = re.compile(r"wb[a-z]\d?[._][A-Za-z0-9_\-.]{16,}|AGE-SECRET-KEY-1[0-9A-Z]+|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
HIDDEN = "[redacted]"

log: structlog.stdlib.BoundLogger = structlog.get_logger("waybill")


def redact(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take secrets out of a log entry."""
    for name, value in entry.items():
        entry[name] = HIDDEN if _NAMES.search(name) and value else scrub(value)
    return entry


def scrub(value: Any) -> Any:
    """The value with everything that looks like a secret replaced."""
    if isinstance(value, str):
        return _SHAPES.sub(HIDDEN, value)
    if isinstance(value, Mapping):
        return {key: HIDDEN if _NAMES.search(str(key)) else scrub(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [scrub(item) for item in value]
    return value


def configure(*, as_json: bool = False, level: str = "INFO") -> None:
    """Set up logging for a process: lines for a terminal, or JSON for a collector."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level="WARNING", force=True)
