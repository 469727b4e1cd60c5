"""From what is stored to what is shown: pure functions from a snapshot to values that templates print."""

from __future__ import annotations

import msgspec

from waybill.deploy.events import DeploymentRefused, HostReported, RolloutCreated
from waybill.deploy.model import Grant, Host, Rollout, RolloutHost
from waybill.deploy.rules import carries
from waybill.events.model import Event
from waybill.web.pages.snapshot import Snapshot
from waybill.web.pages.words import Badge, count, host_badge, names, rollout_badge
from waybill.wire.agent import FINAL, Report


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout with where its hosts stand."""

    rollout: Rollout
    badge: Badge
    hosts: list[tuple[RolloutHost, Badge]]
    through: int

    @property
    def words(self) -> str:
        """Its progress in words."""
        total = len(self.hosts)
        return f"{self.through} of {count(total, 'host')} through" if total else "no hosts"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A service in an environment.

    Attributes:
        commits: (commit, number of hosts) that are live, most first.
        since: When the newest good release was done; empty when there is none.
        orphans: Sentences about hosts that run what nothing wants any more.
        warnings: Other sentences.
    """

    service: str
    environment: str
    commits: list[tuple[str, int]]
    health: Badge
    since: str
    running: Progress | None
    orphans: list[str]
    warnings: list[str]

    @property
    def key(self) -> str:
        """``service/environment``."""
        return f"{self.service}/{self.environment}"


def progress(snapshot: Snapshot, rollout: Rollout) -> Progress:
    """Where a rollout stands."""
    members = snapshot.members.get(rollout.id, [])
    return Progress(
        rollout=rollout,
        badge=rollout_badge(rollout.state),
        hosts=[(member, _standing(rollout, member)) for member in members],
        through=sum(member.state in FINAL for member in members),
    )


def _standing(rollout: Rollout, member: RolloutHost) -> Badge:
    if rollout.outcome and member.state == "live":
        return Badge("ok", "Back on the release before")
    return host_badge(member.state)


def places(snapshot: Snapshot) -> list[Place]:
    """Every service in every environment that is granted, runs, or was ever rolled out; by name."""
    hosts = {host.name: host for host in snapshot.hosts}
    grants = {(grant.service, grant.environment): grant for grant in snapshot.grants}
    reports: dict[tuple[str, str], list[tuple[str, Report]]] = {}
    for host, report in snapshot.reports:
        reports.setdefault((report.service, report.environment), []).append((host, report))
    running = {(rollout.service, rollout.environment): rollout for rollout in reversed(_by_urgency(snapshot))}
    created: dict[str, RolloutCreated] = {}
    for event in snapshot.created:
        if isinstance(event.body, RolloutCreated):
            created.setdefault(event.body.subject(), event.body)
    recent = {(rollout.service, rollout.environment) for rollout in snapshot.recent}
    found = []
    for key in sorted({*grants, *reports, *running, *recent, *snapshot.good}):
        good = snapshot.good.get(key)
        said = reports.get(key, [])
        newest = created.get("/".join(key))
        found.append(
            Place(
                service=key[0],
                environment=key[1],
                commits=_commits(said),
                health=health(said),
                since=good.finished if good else "",
                running=progress(snapshot, running[key]) if key in running else None,
                orphans=_orphans(snapshot, said, hosts, grants.get(key), good),
                warnings=_warnings(said, hosts, newest),
            )
        )
    return found


def health(said: list[tuple[str, Report]]) -> Badge:
    """The health of what is live on these hosts, the worst first."""
    live = [(host, report.health) for host, report in said if report.live_sequence]
    if not live:
        return Badge("idle", "Nothing is live")
    by_state: dict[str, list[str]] = {}
    for host, state in live:
        by_state.setdefault(state, []).append(host)
    for state, badge in (("failing", "bad"), ("stopped", "bad"), ("restarting", "warn")):
        if state in by_state:
            return Badge("bad" if badge == "bad" else "warn", f"{state.capitalize()} on {names(by_state[state])}")
    unchecked, healthy = by_state.get("unknown", []), by_state.get("healthy", [])
    if not healthy:
        return Badge("idle", f"Runs on {count(len(unchecked), 'host')}, health not checked")
    if unchecked:
        return Badge("ok", f"Healthy on {len(healthy)}, not checked on {len(unchecked)}")
    return Badge("ok", f"Healthy on {count(len(healthy), 'host')}")


def timeline_badge(event: Event) -> Badge:
    """The kind of an event in a word."""
    body = event.body
    state = getattr(body, "state", "")
    if isinstance(body, DeploymentRefused):
        return Badge("bad", "Refused")
    if isinstance(body, HostReported):
        return host_badge(state)
    if state:
        return rollout_badge(state)
    word = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in event.kind).strip()
    return Badge("idle", word.capitalize())


def headline(snapshot: Snapshot, shown: list[Place]) -> Badge:
    """The whole state in one sentence."""
    bad = [place.key for place in shown if place.health.kind == "bad"]
    away = [host.name for host in snapshot.hosts if host.seen and not host.connected and not host.revoked]
    warned = sum(len(place.warnings) + len(place.orphans) for place in shown)
    parts = []
    if snapshot.running:
        parts.append(f"{count(len(snapshot.running), 'rollout')} under way")
    if bad:
        parts.append(f"In trouble: {names(bad)}")
    if away:
        parts.append(f"Away: {names(away)}")
    if warned:
        parts.append(count(warned, "warning"))
    if snapshot.aside:
        parts.append(f"{count(len(snapshot.aside), 'piece')} of work set aside")
    if not shown and not snapshot.hosts:
        return Badge("idle", "Nothing is here yet.")
    if not parts:
        return Badge("ok", f"All is well: {count(len(shown), 'service')}, {count(len(snapshot.hosts), 'host')}.")
    calm = not (bad or away or warned or snapshot.aside)
    return Badge("bad" if bad else "busy" if calm else "warn", " · ".join(parts) + ".")


def _by_urgency(snapshot: Snapshot) -> list[Rollout]:
    return sorted(snapshot.running, key=lambda rollout: (rollout.state == "waiting", rollout.created))


def _commits(said: list[tuple[str, Report]]) -> list[tuple[str, int]]:
    counted: dict[str, int] = {}
    for _, report in said:
        if report.live_sequence and report.live_commit:
            counted[report.live_commit] = counted.get(report.live_commit, 0) + 1
    return sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))


def _warnings(said: list[tuple[str, Report]], hosts: dict[str, Host], newest: RolloutCreated | None) -> list[str]:
    found = list(newest.warnings) if newest else []
    away = [name for name, report in said if report.live_sequence and name in hosts and not hosts[name].connected]
    away = [name for name in away if not hosts[name].revoked]
    if away:
        found.append(f"{names(away)} {'is' if len(away) == 1 else 'are'} away; shown is what was last heard.")
    for name, report in said:
        if report.state in ("failed", "refused", "held"):
            why = f": {report.reason}" if report.reason else "."
            found.append(f"{name} {'is held by a person there' if report.state == 'held' else report.state}{why}")
    return found


def _orphans(
    snapshot: Snapshot,
    said: list[tuple[str, Report]],
    hosts: dict[str, Host],
    grant: Grant | None,
    good: Rollout | None,
) -> list[str]:
    wanted = {member.host for member in snapshot.members.get(good.id, ())} if good else None
    found = []
    for name, report in said:
        host = hosts.get(name)
        if not report.live_sequence:
            continue
        if host is None or host.revoked:
            why = "the host is not enrolled any more"
        elif grant is None:
            why = "nothing grants it any more"
        elif not carries(host.labels, grant.hosts):
            why = "the host's labels no longer match the grant"
        elif good and wanted is not None and name not in wanted and good.sequence >= report.live_sequence:
            why = "the newest release does not go there"
        else:
            continue
        found.append(f"Orphaned on {name}: {why}. It keeps running until a person removes it.")
    return found
