"""Data race reports on their way from a test machine to the server."""

from __future__ import annotations

from typing import Any

import msgspec


class SightedReport(msgspec.Struct, frozen=True, kw_only=True):
    """One report, as the machine read it.

    Attributes:
        id: Of the log and the place in it; sending it again changes nothing.
        build: What ran; may be empty.
        at: When it was seen, RFC 3339 UTC.
        report: As ``waybill races scan --json`` prints it.
    """

    id: str
    build: str = ""
    at: str
    report: Any


class PostedRaces(msgspec.Struct, frozen=True, kw_only=True):
    """Reports of one machine."""

    host: str
    reports: list[SightedReport]


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """How many reports were new to the server; all of them are durable there."""

    new: int


class RaceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A report as the server keeps it.

    Attributes:
        state: ``new``, ``filed``, ``quarantine`` or ``discarded``.
        issue: Its number, where it is filed.
        reason: Why it is in quarantine.
        text: The report itself; only where one is asked for.
    """

    id: str
    host: str
    build: str
    at: str
    key_id: str
    title: str
    state: str
    issue: str = ""
    reason: str = ""
    text: str = ""


class RaceDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What a person says about a report in quarantine.

    Attributes:
        what: ``attach`` to an issue, ``open`` an issue of its own, or ``discard``.
        issue: The number to attach to.
    """

    what: str
    issue: str = ""
