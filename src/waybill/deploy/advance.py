"""A rollout's next step, performed: all of it is one write to the database, decided by ``rules``.

Level-triggered: whoever leases the work row of a service and environment reads the stored state, does what the rules
say until they say wait, and may die at any moment; the next one continues.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import sqlalchemy as sa

from waybill.core.clock import stamp
from waybill.deploy import rules
from waybill.deploy.events import RolloutChanged, RolloutCreated
from waybill.deploy.model import ENDED, Host, Rollout, RolloutHost
from waybill.deploy.store import hosts as host_store
from waybill.deploy.store import rollouts as store
from waybill.events import outbox
from waybill.infra.db import Connection, epoch
from waybill.trust import manifest as manifests
from waybill.trust.manifest import Manifest
from waybill.wire.agent import Abandon, BuildOrder, Desired

HANDLER = "rollout"
SYSTEM = "waybill"
BUILD_PATIENCE = 900.0
"""Seconds that a rollout waits for its build before it fails."""
BUILDER_AWAY = 30.0
"""Seconds after which an order is given to another builder when the first one is away."""


def enqueue(connection: Connection, rollout: Rollout, hosts: Sequence[str], warnings: Sequence[str]) -> None:
    """Keep a new rollout: those of its environment that still wait are superseded."""
    if not store.add_rollout(connection, rollout, hosts):
        return
    for older in store.rollouts(connection, rollout.service, rollout.environment, ["waiting"]):
        if older.id != rollout.id:
            _changed(connection, store.finish(connection, older.id, "superseded", f"{rollout.commit[:12]} is newer"))
    body = RolloutCreated(
        rollout=rollout.id,
        service=rollout.service,
        environment=rollout.environment,
        commit=rollout.commit,
        cause=rollout.cause,
        hosts=list(hosts),
        warnings=list(warnings),
    )
    outbox.record(connection, body, rollout.actor)
    outbox.wake(connection, HANDLER, rollout.key)


def advance(connection: Connection, service: str, environment: str) -> float | None:
    """Move the rollouts of one environment on; returns seconds until the next look, None when nothing is under way."""
    for _ in range(50):  # each turn changes a state; no rollout has as many steps at one moment
        active = store.rollouts(connection, service, environment, ["building", "running", "reverting"], limit=1)
        if not active:
            waiting = store.rollouts(connection, service, environment, ["waiting"], limit=1)
            if not waiting:
                return None
            _begin(connection, waiting[0])
            continue
        pause = _step(connection, active[0])
        if pause is not None:
            return pause
    return 0.1


def cancel(connection: Connection, rollout: Rollout, reason: str) -> Rollout:
    """Stop a rollout that has not ended; hosts that were told go back to what was good."""
    if rollout.state in ENDED:
        return rollout
    if rollout.state == "running":
        told = [host.host for host in store.rollout_hosts(connection, rollout.id) if host.state != "untold"]
        return _go_back(connection, rollout, told, "cancelled", reason)
    if rollout.state == "reverting":
        return store.update_rollout(connection, rollout.id, outcome="cancelled", reason=reason)
    return _end(connection, rollout, "cancelled", reason)


def _begin(connection: Connection, rollout: Rollout) -> None:
    previous = store.good(connection, rollout.service, rollout.environment)
    state = "building" if rollout.needs_build and not rollout.build else "running"
    begun = store.update_rollout(connection, rollout.id, state=state, previous=previous, started=stamp())
    if state == "running":
        _issue(connection, begun)
    else:
        _changed(connection, begun)


def _issue(connection: Connection, rollout: Rollout) -> None:
    """Write the manifest and let the rollout run."""
    sequence = store.next_sequence(connection, rollout.service, rollout.environment)
    manifest = Manifest(
        service=rollout.service,
        environment=rollout.environment,
        repository=rollout.repository,
        commit=rollout.commit,
        file=rollout.file,
        sequence=sequence,
        issued=stamp(),
        build=rollout.build or None,
        locked=rollout.locked or None,
    )
    text = manifests.encode(manifest).decode()
    _changed(
        connection, store.update_rollout(connection, rollout.id, state="running", sequence=sequence, manifest=text)
    )


def _step(connection: Connection, rollout: Rollout) -> float | None:
    if rollout.state == "building":
        return _build(connection, rollout)
    if rollout.sequence < host_store.highest_sequence(connection, rollout.service, rollout.environment):
        _renumber(connection, rollout)
        return None
    hosts = store.rollout_hosts(connection, rollout.id)
    if rollout.state == "reverting":
        step = rules.after_revert(hosts, rollout.limit)
    else:
        step = rules.next_step(hosts, order=rollout.order, limit=rollout.limit)
    match step:
        case rules.Wait(seconds=seconds):
            return seconds
        case rules.Tell(hosts=names):
            _tell(connection, rollout, names, hosts)
        case rules.Revert(hosts=names, reason=reason):
            _go_back(connection, rollout, names, "reverted", reason)
        case rules.End(state=state, reason=reason):
            reasons = (rollout.reason, reason) if rollout.state == "reverting" else (reason,)
            ending = rollout.outcome if state == "reverted" else state
            _end(connection, rollout, ending, "; ".join(part for part in reasons if part))
    return None


def _renumber(connection: Connection, rollout: Rollout) -> None:
    """Tell the same again above what hosts accepted: an older copy of the database was put back, they never go back."""
    sequence = store.next_sequence(connection, rollout.service, rollout.environment)
    manifest = msgspec.structs.replace(manifests.decode(rollout.manifest), sequence=sequence, issued=stamp())
    text = manifests.encode(manifest).decode()
    changed = store.update_rollout(connection, rollout.id, sequence=sequence, manifest=text)
    told = [host.host for host in store.rollout_hosts(connection, rollout.id) if host.state != "untold"]
    if rollout.state == "reverting":
        _tell(connection, changed, told, store.rollout_hosts(connection, rollout.id))
    else:
        store.set_untold(connection, rollout.id)  # the rules tell them in their order


def _tell(connection: Connection, rollout: Rollout, names: Iterable[str], hosts: list[RolloutHost]) -> None:
    sealed = host_store.sealed(connection, rollout.service, rollout.environment) if rollout.locked else {}
    first = all(host.state == "untold" for host in hosts)
    revision = host_store.next_revision(connection)
    names = list(names)
    messages = {
        name: Desired(
            revision=revision,
            rollout=rollout.id,
            manifest=rollout.manifest,
            sealed=sealed.get(name),
            once=first and index == 0,
        )
        for index, name in enumerate(names)
    }
    host_store.tell(connection, messages, rollout.key)
    store.set_told(connection, rollout.id, names, rollout.sequence)


def _go_back(connection: Connection, rollout: Rollout, names: Iterable[str], outcome: str, reason: str) -> Rollout:
    """Tell hosts the manifest of what was good again, under a new sequence; without one, to abandon this one."""
    names = list(names)
    previous = store.rollout(connection, rollout.previous) if rollout.previous else None
    if previous is None:
        revision = host_store.next_revision(connection)
        message = Abandon(
            revision=revision,
            service=rollout.service,
            environment=rollout.environment,
            sequence=rollout.sequence,
        )
        hosts = {host.host: host for host in store.rollout_hosts(connection, rollout.id)}
        host_store.tell(connection, {name: message for name in names if hosts[name].state != "live"}, rollout.key)
        return _end(connection, rollout, "failed" if outcome == "reverted" else outcome, reason)
    sequence = store.next_sequence(connection, rollout.service, rollout.environment)
    good = msgspec.structs.replace(manifests.decode(previous.manifest), sequence=sequence, issued=stamp())
    changed = store.update_rollout(
        connection,
        rollout.id,
        state="reverting",
        outcome=outcome,
        reason=reason,
        sequence=sequence,
        manifest=manifests.encode(good).decode(),
        locked=previous.locked,
    )
    hosts_before = store.rollout_hosts(connection, rollout.id)
    _tell(connection, changed, names, hosts_before)
    _changed(connection, changed)
    return changed


def _build(connection: Connection, rollout: Rollout) -> float | None:
    build = store.build_for(
        connection,
        service=rollout.service,
        repository=rollout.repository,
        commit=rollout.commit,
        file=rollout.file,
    )
    if build.state == "there":
        _issue(connection, store.update_rollout(connection, rollout.id, build=build.digest))
        return None
    if build.state == "failed":
        _end(connection, rollout, "failed", f"the build failed: {build.reason}")
        store.set_build(connection, build.id, state="wanted", reason="")
        return None
    hosts = {host.name: host for host in host_store.hosts(connection)}
    current = hosts.get(build.host)
    if build.state == "ordered" and build.asked > BUILD_PATIENCE:
        host_store.untell(connection, build.host, f"build:{build.id}")
        store.set_build(connection, build.id, state="failed", reason=f"{build.host} did not finish in time")
        return None
    if build.state == "ordered" and current is not None and (current.connected or build.asked < BUILDER_AWAY):
        return 5.0
    builder = _builder(hosts.values())
    if builder is None:
        return 5.0  # continuous integration may post the result, or a builder may connect
    revision = host_store.next_revision(connection)
    order = BuildOrder(
        revision=revision,
        id=build.id,
        service=build.service,
        repository=build.repository,
        commit=build.commit,
        file=build.file,
    )
    if build.host:
        host_store.untell(connection, build.host, f"build:{build.id}")
    host_store.tell(connection, {builder: order}, f"build:{build.id}")
    now = connection.execute(sa.select(epoch(connection))).scalar_one()
    store.set_build(connection, build.id, state="ordered", host=builder, asked=now)
    return 5.0


def _builder(hosts: Iterable[Host]) -> str | None:
    able = [host.name for host in hosts if host.connected and not host.revoked and "build" in host.labels]
    return min(able, default=None)


def _end(connection: Connection, rollout: Rollout, state: str, reason: str) -> Rollout:
    ended = store.finish(connection, rollout.id, state, reason)
    if state == "done":
        store.set_good(connection, rollout.service, rollout.environment, rollout.id)
    _changed(connection, ended)
    return ended


def _changed(connection: Connection, rollout: Rollout) -> None:
    body = RolloutChanged(
        rollout=rollout.id,
        service=rollout.service,
        environment=rollout.environment,
        commit=rollout.commit,
        state=rollout.state,
        reason=rollout.reason,
    )
    outbox.record(connection, body, SYSTEM)
