"""What the pages about hosts and about one rollout show: pure, like ``present``."""

from __future__ import annotations

import msgspec

from waybill.deploy.events import HostReported, RolloutCreated
from waybill.deploy.model import Host, Rollout, RolloutHost
from waybill.events.model import Event
from waybill.web.pages.present import Progress, progress, timeline_badge
from waybill.web.pages.snapshot import Snapshot
from waybill.web.pages.words import Badge, apart, size, skew
from waybill.wire.agent import Facts

LOW_DISK = 1024**3
"""Bytes of free disk below which a host is marked."""
PER_PAGE = 100


class KeptFacts(Facts, frozen=True, kw_only=True):
    """Facts with the server's time of receipt."""

    received: str = ""


class HostRow(msgspec.Struct, frozen=True, kw_only=True):
    """A host as listed."""

    host: Host
    badge: Badge
    labels: list[str]
    version: str
    system: str
    clock: Badge | None
    disk: Badge | None
    live: list[str]


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened in a rollout, so many milliseconds after it began."""

    event: Event
    badge: Badge
    after: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Where one host stands with a rollout, and what it said last."""

    member: RolloutHost
    badge: Badge
    took: int | None
    reason: str
    evidence: str


class RolloutPage(msgspec.Struct, frozen=True, kw_only=True):
    """One rollout, whole."""

    progress: Progress
    outcomes: list[Outcome]
    moments: list[Moment]
    lasted: int | None
    warnings: list[str]


def host_rows(snapshot: Snapshot) -> list[HostRow]:
    """Hosts, those that need a look first, then by name."""
    live: dict[str, list[str]] = {}
    for name, report in snapshot.reports:
        if report.live_sequence:
            live.setdefault(name, []).append(f"{report.service}/{report.environment}")
    rows = [_host_row(host, live.get(host.name, [])) for host in snapshot.hosts]
    return sorted(rows, key=lambda row: (_calm(row), row.host.name))


def rollout_page(snapshot: Snapshot, rollout: Rollout) -> RolloutPage:
    """One rollout with its hosts and what happened, in order."""
    _, events = snapshot.about.get(rollout.key, ([], []))
    shown = progress(snapshot, rollout)
    mine = [event for event in reversed(events) if _belongs(event, rollout)]
    said: dict[str, list[HostReported]] = {}
    for event in mine:
        if isinstance(event.body, HostReported):
            said.setdefault(event.body.host, []).append(event.body)
    created = [event.body for event in mine if isinstance(event.body, RolloutCreated)]
    return RolloutPage(
        progress=shown,
        outcomes=[_outcome(member, badge, said.get(member.host, [])) for member, badge in shown.hosts],
        moments=[
            Moment(event=event, badge=timeline_badge(event), after=apart(event.at, rollout.created) or 0)
            for event in mine
        ],
        lasted=apart(rollout.finished, rollout.created) if rollout.finished else None,
        warnings=created[0].warnings if created else [],
    )


def _belongs(event: Event, rollout: Rollout) -> bool:
    """Whether an event is part of a rollout; going back has its own sequence, and late hosts report after the end."""
    body = event.body
    if isinstance(body, HostReported):
        during = bool(rollout.started) and rollout.started <= event.at and not event.at > (rollout.finished or event.at)
        return during or body.sequence == rollout.sequence
    return getattr(body, "rollout", "") == rollout.id


def _outcome(member: RolloutHost, badge: Badge, said: list[HostReported]) -> Outcome:
    trouble = next((body for body in reversed(said) if body.reason or body.evidence), None)
    return Outcome(
        member=member,
        badge=badge,
        took=said[-1].took if said else None,
        reason=member.reason or (trouble.reason if trouble else ""),
        evidence=trouble.evidence if trouble else "",
    )


def _host_row(host: Host, live: list[str]) -> HostRow:
    facts = _facts(host)
    off = apart(facts.at, facts.received) if facts and facts.received else None
    disk = None
    if facts and facts.disk_free:
        low = facts.disk_free < LOW_DISK
        disk = Badge("warn" if low else "ok", f"{size(facts.disk_free)} free")
    return HostRow(
        host=host,
        badge=_presence(host),
        labels=[f"{name}={value}" for name, value in sorted(host.labels.items())],
        version=facts.version if facts else "",
        system=" ".join(part for part in (facts.system if facts else "", host.arch) if part),
        clock=None if off is None else skew(off),
        disk=disk,
        live=live,
    )


def _presence(host: Host) -> Badge:
    if host.revoked:
        return Badge("idle", "Revoked")
    if host.connected:
        return Badge("ok", "Connected")
    return Badge("bad", "Away") if host.seen else Badge("warn", "Never connected")


def _facts(host: Host) -> KeptFacts | None:
    try:
        return msgspec.json.decode(host.facts, type=KeptFacts) if host.facts else None
    except msgspec.DecodeError:
        return None


def _calm(row: HostRow) -> bool:
    marks = [row.badge, row.clock or row.badge, row.disk or row.badge]
    return row.host.revoked or all(mark.kind == "ok" for mark in marks)
