"""What a token may see: pure, and the one place where pages leave something out."""

from __future__ import annotations

from fnmatch import fnmatchcase

import msgspec

from waybill.deploy.access import Token, sees
from waybill.deploy.events import Changed, HostEnrolled
from waybill.deploy.model import Host
from waybill.deploy.rules import carries
from waybill.events.model import Event
from waybill.web.pages.snapshot import Snapshot


def unbound(token: Token) -> bool:
    """Whether a token reaches every service and environment."""
    return token.services == "*" and token.environments == "*"


def narrow(snapshot: Snapshot, token: Token) -> Snapshot:
    """The part of a snapshot that a token may see.

    A host belongs to nobody: a bound token sees those that run, ran or may run something that it sees.
    """
    if unbound(token):
        return snapshot
    hosts = visible_hosts(snapshot, token)
    repositories = {grant.repository for grant in snapshot.grants if sees(token, grant.service, grant.environment)}

    def event_seen(event: Event) -> bool:
        return sees_event(event, token, hosts, repositories)

    return msgspec.structs.replace(
        snapshot,
        tokens={},
        hosts=[host for host in snapshot.hosts if host.name in hosts],
        reports=[
            (host, report) for host, report in snapshot.reports if sees(token, report.service, report.environment)
        ],
        grants=[grant for grant in snapshot.grants if sees(token, grant.service, grant.environment)],
        running=[rollout for rollout in snapshot.running if sees(token, rollout.service, rollout.environment)],
        recent=[rollout for rollout in snapshot.recent if sees(token, rollout.service, rollout.environment)],
        good={key: rollout for key, rollout in snapshot.good.items() if sees(token, *key)},
        events=[event for event in snapshot.events if event_seen(event)],
        created=[event for event in snapshot.created if event_seen(event)],
        refused=[event for event in snapshot.refused if event_seen(event)],
        aside=[],
        about={key: value for key, value in snapshot.about.items() if sees(token, *_split(key))},
        named={key: value for key, value in snapshot.named.items() if sees(token, value.service, value.environment)},
    )


def visible_hosts(snapshot: Snapshot, token: Token) -> set[str]:
    """Names of the hosts that a token may see."""
    if unbound(token):
        return {host.name for host in snapshot.hosts}
    names = {host for host, report in snapshot.reports if sees(token, report.service, report.environment)}
    for rollout in [*snapshot.running, *snapshot.good.values(), *snapshot.named.values()]:
        if sees(token, rollout.service, rollout.environment):
            names |= {member.host for member in snapshot.members.get(rollout.id, ())}
    selectors = [grant.hosts for grant in snapshot.grants if sees(token, grant.service, grant.environment)]
    return names | {host.name for host in snapshot.hosts if _fits(host, selectors)}


def sees_event(event: Event, token: Token, hosts: set[str], repositories: set[str]) -> bool:
    """Whether a token may see an event; one that says not what it is about is for unbound tokens alone."""
    if unbound(token):
        return True
    body = event.body
    if isinstance(body, Changed):
        return False
    if isinstance(body, HostEnrolled):
        return body.host in hosts
    service, environment = getattr(body, "service", ""), getattr(body, "environment", "")
    if service and environment:
        return sees(token, service, environment)
    if service:
        return fnmatchcase(service, token.services)
    return getattr(body, "repository", None) in repositories


def _fits(host: Host, selectors: list[dict[str, str]]) -> bool:
    return not host.revoked and any(carries(host.labels, selector) for selector in selectors)


def _split(key: str) -> tuple[str, str]:
    service, _, environment = key.partition("/")
    return service, environment
