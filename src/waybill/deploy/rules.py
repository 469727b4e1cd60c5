"""Pure decisions of deploying: what a push may deploy, and what a rollout does next."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import msgspec

from waybill.deploy.model import Grant, Host, RolloutHost
from waybill.deploy.servicefile import Environment, ServiceFile
from waybill.wire.agent import FINAL

PATIENCE = 15.0
"""Seconds that a rollout waits for a host that is away before it goes on without it."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why an environment is not deployed."""

    service: str
    environment: str
    reason: str
    hint: str = ""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """An environment is to be deployed on these hosts."""

    file: ServiceFile
    environment: Environment
    hosts: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def plan_push(
    files: Iterable[ServiceFile], branch: str, repository: str, grants: Sequence[Grant], hosts: Sequence[Host]
) -> list[Plan | Refusal]:
    """What the head of a branch deploys.

    The service file only narrows: an environment is deployed where its file *and* the server's grant agree on
    repository, branch and hosts. An environment whose own patterns do not match the branch is simply not meant.
    """
    result: list[Plan | Refusal] = []
    by_key = {(grant.service, grant.environment): grant for grant in grants}
    for file in files:
        for environment in file.environments.values():
            if matches(branch, environment.branches):
                grant = by_key.get((file.service, environment.name))
                result.append(_plan(file, environment, branch, repository, grant, hosts))
    return result


def matches(branch: str, patterns: Collection[str]) -> bool:
    """Whether a branch name matches one of the patterns (``*`` spans ``/``)."""
    return any(fnmatchcase(branch, pattern) for pattern in patterns)


def carries(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether labels hold all that a selector asks for."""
    return all(labels.get(name) == value for name, value in selector.items())


def _plan(
    file: ServiceFile,
    environment: Environment,
    branch: str,
    repository: str,
    grant: Grant | None,
    hosts: Sequence[Host],
) -> Plan | Refusal:
    def refuse(reason: str, hint: str) -> Refusal:
        return Refusal(service=file.service, environment=environment.name, reason=reason, hint=hint)

    key = f"{file.service}/{environment.name}"
    if grant is None or grant.repository != repository:
        whose = f"it is granted to {grant.repository}" if grant else "nothing is granted there"
        return refuse(
            f"{repository} may not deploy {key}: {whose}.",
            f"An admin grants it: waybill grant {key} --repository {repository} --branch {branch}",
        )
    if not matches(branch, grant.branches):
        return refuse(
            f"{file.path} lets branch {branch} deploy {key}, the grant does not: it names {', '.join(grant.branches)}.",
            "A service file only narrows what was granted.",
        )
    asked = [host for host in hosts if not host.revoked and carries(host.labels, environment.hosts)]
    beyond = [host.name for host in asked if not carries(host.labels, grant.hosts)]
    if beyond:
        return refuse(
            f"{file.path} asks for hosts beyond the grant of {key}: {', '.join(beyond[:5])}.",
            f"The grant covers hosts with {_labels(grant.hosts)}; narrow `hosts` in the file.",
        )
    if not asked:
        return refuse(
            f"no enrolled host carries {_labels(environment.hosts)}, which {key} asks for.",
            "waybill hosts lists hosts with their labels.",
        )
    warnings = () if environment.health else (f"{key} has no health check: a broken version will reach users.",)
    return Plan(file=file, environment=environment, hosts=tuple(host.name for host in asked), warnings=warnings)


def _labels(labels: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(labels.items())) or "any label"


class Tell(msgspec.Struct, frozen=True, kw_only=True):
    """Tell these hosts the rollout's manifest."""

    hosts: tuple[str, ...]


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing to do before a host reports or these seconds have passed."""

    seconds: float


class Revert(msgspec.Struct, frozen=True, kw_only=True):
    """Bring these hosts back to what was good, since others failed."""

    hosts: tuple[str, ...]
    reason: str


class End(msgspec.Struct, frozen=True, kw_only=True):
    """The rollout is over."""

    state: Literal["done", "failed", "reverted"]
    reason: str = ""


Step = Tell | Wait | Revert | End


def next_step(hosts: Sequence[RolloutHost], *, order: str = "together", limit: float = 600.0) -> Step:
    """What a running rollout does next.

    Args:
        hosts: All hosts of the rollout.
        order: ``together`` tells all at once, ``one-by-one`` the next when the one before is through,
            ``first-then-rest`` one host and then all others.
        limit: Seconds that a connected host has to reach a final state.
    """
    failed = [host for host in hosts if host.state in ("failed", "refused", "abandoned")]
    overdue = [host for host in hosts if _pending(host) and not host.away and host.told > limit]
    if failed or overdue:
        reason = _failure(failed, overdue, limit)
        told = tuple(host.host for host in hosts if host.state != "untold")
        return Revert(hosts=told, reason=reason)
    away = [host for host in hosts if host.away and not _through(host)]
    pending = [host for host in hosts if _pending(host)]
    untold = [host for host in hosts if host.state == "untold"]
    if untold and order == "together":
        return Tell(hosts=tuple(host.host for host in untold))
    waiting_on = [host for host in pending if not _given_up(host)]
    if untold and not waiting_on:
        here = [host for host in untold if not host.away] or untold
        if order == "first-then-rest" and any(host.state == "live" for host in hosts):
            return Tell(hosts=tuple(host.host for host in untold))
        return Tell(hosts=(here[0].host,))
    if waiting_on:
        return Wait(seconds=min(_patience(host, limit) for host in waiting_on))
    held = [host.host for host in hosts if host.state == "held"]
    notes = []
    if away:
        names = ", ".join(host.host for host in away[:5])
        notes.append(f"{len(away)} of {len(hosts)} hosts are away and switch when they return: {names}")
    if held:
        notes.append(f"held by a person on the host: {', '.join(held[:5])}")
    return End(state="done", reason="; ".join(notes))


def after_revert(hosts: Sequence[RolloutHost], limit: float = 600.0) -> Step:
    """What a reverting rollout does next: it ends when every host that is here is back."""
    pending = [host for host in hosts if _pending(host)]
    waiting_on = [host for host in pending if not _given_up(host) and host.told <= limit]
    if waiting_on:
        return Wait(seconds=min(_patience(host, limit) for host in waiting_on))
    stuck = [host for host in hosts if host.state in ("failed", "refused") or (_pending(host) and not host.away)]
    if stuck:
        names = ", ".join(f"{host.host} ({host.reason or host.state})" for host in stuck[:5])
        return End(state="failed", reason=f"these hosts did not come back to the release before: {names}")
    return End(state="reverted")


def _pending(host: RolloutHost) -> bool:
    return host.state != "untold" and host.state not in FINAL


def _through(host: RolloutHost) -> bool:
    return host.state in ("live", "held", "removed")


def _given_up(host: RolloutHost) -> bool:
    return host.away >= PATIENCE and host.told >= PATIENCE


def _patience(host: RolloutHost, limit: float) -> float:
    if host.away:
        return max(0.1, PATIENCE - min(host.away, host.told))
    return max(0.1, min(limit - host.told + 0.1, PATIENCE))


def _failure(failed: Sequence[RolloutHost], overdue: Sequence[RolloutHost], limit: float) -> str:
    parts = [f"{host.host}: {host.reason or host.state}" for host in failed[:3]]
    parts += [f"{host.host}: still {host.state} after {limit:.0f} s" for host in overdue[:3]]
    more = len(failed) + len(overdue) - len(parts)
    return "; ".join(parts) + (f" and {more} more" if more > 0 else "")
