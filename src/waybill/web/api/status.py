"""``/api/status``: what runs where, and what is under way."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec
from litestar import get

from waybill import __version__
from waybill.core.clock import parse, stamp
from waybill.deploy import access, rules
from waybill.deploy.access import Token
from waybill.deploy.events import RolloutCreated
from waybill.deploy.model import ENDED, Grant, Host, Rollout
from waybill.deploy.store import hosts as host_store
from waybill.deploy.store import repositories, rollouts
from waybill.events import outbox
from waybill.infra.db import Connection
from waybill.web.api import hosts as hosts_api
from waybill.web.api.common import Ours, Who
from waybill.web.api.rollouts import info
from waybill.wire.agent import Report
from waybill.wire.api import EnvironmentStatus, LiveHost, Status

Key = tuple[str, str]
SKEW = 60.0
"""Seconds that clocks may differ without anybody being told."""


@get("/status")
async def status(context: Ours, token: Who) -> Status:
    """Services, environments and hosts that the token sees."""
    access.require(token, "view")
    return await context.db.read(lambda connection: _status(connection, token))


def _status(connection: Connection, token: Token) -> Status:
    hosts = {host.name: host for host in host_store.hosts(connection)}
    reports = host_store.reports(connection)
    troubles = {one.name: one.trouble for one in repositories.repositories(connection) if one.trouble}
    grants = {(grant.service, grant.environment): grant for grant in repositories.grants(connection)}
    by_key: defaultdict[Key, list[tuple[str, Report]]] = defaultdict(list)
    for name, report in reports:
        if report.state != "removed" or report.live_sequence:
            by_key[report.service, report.environment].append((name, report))
    under_way: defaultdict[Key, list[Rollout]] = defaultdict(list)
    for rollout in rollouts.newest(connection):
        under_way[rollout.service, rollout.environment].append(rollout)
    keys = sorted(key for key in {*grants, *by_key, *under_way} if access.sees(token, *key))
    warned = outbox.newest_of(connection, RolloutCreated, [f"{service}/{name}" for service, name in keys])
    environments = []
    for key in keys:
        created = warned.get("/".join(key))
        said = created.body.warnings if created and isinstance(created.body, RolloutCreated) else []
        warnings = [*said, *_warnings(key, grants.get(key), hosts, by_key[key])]
        source = grants[key].repository if key in grants else ""
        if source in troubles:
            warnings.append(f"{source} cannot be fetched, pushes to it wait: {troubles[source]}")
        environments.append(_environment(key, grants.get(key), hosts, by_key[key], under_way[key], warnings))
    shown = hosts_api.visible(token, hosts.values(), reports)
    return Status(at=stamp(), version=__version__, environments=environments, hosts=shown)


def _environment(
    key: Key,
    grant: Grant | None,
    hosts: dict[str, Host],
    reports: list[tuple[str, Report]],
    under_way: list[Rollout],
    warnings: list[str],
) -> EnvironmentStatus:
    live = [
        LiveHost(
            host=name,
            state=report.state,
            health=report.health,
            live_commit=report.live_commit,
            live_sequence=report.live_sequence,
            connected=name in hosts and hosts[name].connected,
            reason=report.reason,
            evidence=report.evidence,
            at=report.at,
        )
        for name, report in reports
    ]
    ended = [rollout for rollout in under_way if rollout.state in ENDED]
    return EnvironmentStatus(
        service=key[0],
        environment=key[1],
        repository=grant.repository if grant else "",
        hosts=live,
        running=[info(rollout) for rollout in under_way if rollout.state not in ENDED],
        last=info(ended[0]) if ended else None,
        warnings=warnings,
    )


def _warnings(key: Key, grant: Grant | None, hosts: dict[str, Host], reports: list[tuple[str, Report]]) -> list[str]:
    """What a person should know of what runs: absence stops nothing, so it is told."""
    told = []
    live = [(name, report) for name, report in reports if report.live_sequence]
    where = "/".join(key)
    for name, report in live:
        host = hosts.get(name)
        if grant is None or host is None or host.revoked or not rules.carries(host.labels, grant.hosts):
            why = "no grant covers it" if grant is None else "the host is no longer one of the grant's"
            told.append(
                f"orphaned on {name}: {why}; it keeps running until waybill hosts remove-service {name} {where}"
            )
        elif not host.connected:
            told.append(f"{name} is not connected; what it last said is shown")
        elif abs(off := _clock(host)) > SKEW:
            way = "ahead of" if off > 0 else "behind"
            told.append(f"the clock of {name} is {abs(off):.0f} s {way} the server's; set up NTP there")
        elif report.health in ("failing", "restarting", "stopped"):
            told.append(f"{report.health} on {name}" + (f": {report.reason}" if report.reason else ""))
    commits = {report.live_commit for _, report in live}
    if len(commits) > 1:
        told.append("hosts differ: " + ", ".join(sorted(commit[:12] for commit in commits)))
    return told


def _clock(host: Host) -> float:
    """Seconds by which a host's clock is ahead of the server's, by what it said of itself when it connected."""
    facts = msgspec.json.decode(host.facts or "{}", type=dict[str, Any])
    if not facts.get("at") or not facts.get("received"):
        return 0.0
    return (parse(facts["at"]) - parse(facts["received"])).total_seconds()


HANDLERS = [status]
