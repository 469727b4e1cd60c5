"""Rollouts, their hosts, and builds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa

from waybill.core.clock import stamp
from waybill.core.errors import NotFoundError
from waybill.core.ids import new_id
from waybill.deploy.model import ENDED, Rollout, RolloutHost
from waybill.deploy.store.hosts import GONE_AFTER, highest_sequence, host_table
from waybill.infra.db import Connection, epoch, metadata, upsert

rollout_table = sa.Table(
    "rollout",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("service", sa.String(64), nullable=False),
    sa.Column("environment", sa.String(64), nullable=False),
    sa.Column("repository", sa.String(200), nullable=False),
    sa.Column("branch", sa.String(400), nullable=False),
    sa.Column("commit", sa.String(64), nullable=False),
    sa.Column("file", sa.String(400), nullable=False),
    sa.Column("cause", sa.String(32), nullable=False),
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created", sa.String(24), nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("order", sa.String(16), nullable=False),
    sa.Column("needs_build", sa.Boolean, nullable=False),
    sa.Column("build", sa.String(80), nullable=False),
    sa.Column("locked", sa.String(80), nullable=False),
    sa.Column("limit", sa.Double, nullable=False),
    sa.Column("previous", sa.String(36), nullable=False),
    sa.Column("manifest", sa.Text, nullable=False),
    sa.Column("origin", sa.String(36), nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("started", sa.String(24), nullable=False),
    sa.Column("finished", sa.String(24), nullable=False),
    sa.UniqueConstraint("origin", "service", "environment"),
    sa.Index("ix_rollout_key_state", "service", "environment", "state"),
)

rollout_host_table = sa.Table(
    "rollout_host",
    metadata,
    sa.Column("rollout", sa.String(36), primary_key=True),
    sa.Column("host", sa.String(64), primary_key=True),
    sa.Column("sequence", sa.Integer, nullable=False, server_default="0"),
    sa.Column("state", sa.String(16), nullable=False, server_default="untold"),
    sa.Column("told", sa.Double, nullable=False, server_default="0"),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
)

target_table = sa.Table(
    "target",
    metadata,
    sa.Column("service", sa.String(64), primary_key=True),
    sa.Column("environment", sa.String(64), primary_key=True),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("good", sa.String(36), nullable=False, server_default=""),
)

build_table = sa.Table(
    "build",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("service", sa.String(64), nullable=False),
    sa.Column("repository", sa.String(200), nullable=False),
    sa.Column("commit", sa.String(64), nullable=False),
    sa.Column("file", sa.String(400), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("host", sa.String(64), nullable=False, server_default=""),
    sa.Column("digest", sa.String(80), nullable=False, server_default=""),
    sa.Column("size", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("output", sa.Text, nullable=False, server_default=""),
    sa.Column("asked", sa.Double, nullable=False, server_default="0"),
    sa.UniqueConstraint("repository", "commit", "file"),
)


_RUNNING = sa.select(rollout_table.c.id).where(
    rollout_table.c.service == sa.bindparam("about"),
    rollout_table.c.environment == sa.bindparam("into"),
    rollout_table.c.state.in_(["running", "reverting"]),
)
_HOST_STATE = (  # built once, since every word of every host needs it
    rollout_host_table.update()
    .where(
        rollout_host_table.c.rollout.in_(_RUNNING),
        rollout_host_table.c.host == sa.bindparam("of"),
        rollout_host_table.c.sequence == sa.bindparam("counted"),
    )
    .values(state=sa.bindparam("became"), reason=sa.bindparam("because"))
)


class BuildRow(msgspec.Struct, frozen=True, kw_only=True):
    """A build: wanted, being made, there, or impossible.

    Attributes:
        state: ``wanted``, ``ordered``, ``there`` or ``failed``.
        asked: Seconds since it was ordered.
    """

    id: str
    service: str
    repository: str
    commit: str
    file: str
    state: str
    host: str = ""
    digest: str = ""
    size: int = 0
    reason: str = ""
    output: str = ""
    asked: float = 0.0


def add_rollout(connection: Connection, rollout: Rollout, hosts: Iterable[str]) -> bool:
    """Keep a new rollout and its hosts; returns False when its origin made one for this environment before."""
    insert = upsert(connection, rollout_table).values(**msgspec.structs.asdict(rollout)).on_conflict_do_nothing()
    if not connection.execute(insert).rowcount:
        return False
    rows = [{"rollout": rollout.id, "host": name} for name in hosts]
    if rows:
        connection.execute(rollout_host_table.insert(), rows)
    return True


def update_rollout(connection: Connection, identity: str, **changed: Any) -> Rollout:
    """Change fields of a rollout; returns it as it is then."""
    connection.execute(rollout_table.update().where(rollout_table.c.id == identity).values(**changed))
    return rollout(connection, identity)


def rollout(connection: Connection, identity: str) -> Rollout:
    """The rollout of this id, or of an id that starts so; NotFoundError when there is none."""
    query = sa.select(rollout_table).where(rollout_table.c.id.startswith(identity, autoescape=True)).limit(2)
    rows = connection.execute(query).mappings().all()
    if len(rows) != 1:
        raise NotFoundError(f"no rollout has the id {identity!r}.", "waybill status lists them.")
    return Rollout(**rows[0])


def rollouts(
    connection: Connection,
    service: str | None = None,
    environment: str | None = None,
    states: Iterable[str] | None = None,
    limit: int = 100,
) -> list[Rollout]:
    """Rollouts, newest first."""
    query = sa.select(rollout_table)
    if service is not None:
        query = query.where(rollout_table.c.service == service)
    if environment is not None:
        query = query.where(rollout_table.c.environment == environment)
    if states is not None:
        query = query.where(rollout_table.c.state.in_(list(states)))
    rows = connection.execute(query.order_by(rollout_table.c.id.desc()).limit(limit)).mappings()
    return [Rollout(**row) for row in rows]


def counts(connection: Connection) -> dict[str, int]:
    """State → how many rollouts are in it."""
    query = sa.select(rollout_table.c.state, sa.func.count()).group_by(rollout_table.c.state)
    return {row[0]: row[1] for row in connection.execute(query)}


def newest(connection: Connection) -> list[Rollout]:
    """Of each service and environment, the newest rollout that has ended and all that have not, newest first."""
    ended = (
        sa.select(sa.func.max(rollout_table.c.id))
        .where(rollout_table.c.state.in_(sorted(ENDED)))
        .group_by(rollout_table.c.service, rollout_table.c.environment)
    )
    query = sa.select(rollout_table).where(
        sa.or_(rollout_table.c.state.not_in(sorted(ENDED)), rollout_table.c.id.in_(ended))
    )
    return [Rollout(**row) for row in connection.execute(query.order_by(rollout_table.c.id.desc())).mappings()]


def rollout_hosts(connection: Connection, identity: str) -> list[RolloutHost]:
    """Where the hosts of a rollout stand, by name; a host that is not enrolled any more counts as away for ever."""
    now = connection.execute(sa.select(epoch(connection))).scalar_one()
    query = (
        sa.select(
            *(rollout_host_table.c[name] for name in ("host", "sequence", "state", "told", "reason")),
            *(host_table.c[name] for name in ("connected", "seen_epoch", "revoked")),
        )
        .outerjoin(host_table, host_table.c.name == rollout_host_table.c.host)
        .where(rollout_host_table.c.rollout == identity)
        .order_by(rollout_host_table.c.host)
    )
    found = []
    for host, sequence, state, told, reason, connected, seen, revoked in connection.execute(query):
        gone = connected is None or revoked
        silent = now - (seen or 0)
        here = not gone and connected and silent < GONE_AFTER
        away = 0.0 if here else (1e9 if gone else max(silent, 0.001))
        waits = now - told if told else 0.0
        found.append(RolloutHost(host=host, sequence=sequence, state=state, told=waits, away=away, reason=reason))
    return found


def all_hosts(connection: Connection, identities: Iterable[str]) -> dict[str, list[RolloutHost]]:
    """Where the hosts of several rollouts stand, by rollout and name, without how long they have been away."""
    query = (
        sa.select(rollout_host_table)
        .where(rollout_host_table.c.rollout.in_(list(identities)))
        .order_by(rollout_host_table.c.rollout, rollout_host_table.c.host)
    )
    found: dict[str, list[RolloutHost]] = {}
    for row in connection.execute(query).mappings():
        found.setdefault(row["rollout"], []).append(
            RolloutHost(host=row["host"], sequence=row["sequence"], state=row["state"], reason=row["reason"])
        )
    return found


def all_good(connection: Connection) -> dict[tuple[str, str], Rollout]:
    """(service, environment) → the rollout whose release is the newest known good one."""
    query = sa.select(rollout_table).join(target_table, target_table.c.good == rollout_table.c.id)
    found = [Rollout(**row) for row in connection.execute(query).mappings()]
    return {(rollout.service, rollout.environment): rollout for rollout in found}


def set_told(connection: Connection, identity: str, hosts: Iterable[str], sequence: int) -> None:
    """Note that these hosts were told this sequence now."""
    connection.execute(
        rollout_host_table.update()
        .where(rollout_host_table.c.rollout == identity, rollout_host_table.c.host.in_(list(hosts)))
        .values(sequence=sequence, state="waiting", told=epoch(connection), reason="")
    )


def set_untold(connection: Connection, identity: str) -> None:
    """Take back that the hosts of a rollout were told anything."""
    connection.execute(
        rollout_host_table.update()
        .where(rollout_host_table.c.rollout == identity)
        .values(sequence=0, state="untold", told=0, reason="")
    )


def set_host_state(connection: Connection, host: str, key: tuple[str, str], sequence: int, state: str, why: str) -> int:
    """Note what a host said about a sequence; returns how many running rollouts that concerns."""
    said = {"of": host, "about": key[0], "into": key[1], "counted": sequence, "became": state, "because": why}
    return connection.execute(_HOST_STATE, said).rowcount


def next_sequence(connection: Connection, service: str, environment: str) -> int:
    """The next sequence of a service's manifests in an environment, above whatever any host reported."""
    floor = highest_sequence(connection, service, environment)
    insert = upsert(connection, target_table).values(service=service, environment=environment, sequence=floor + 1)
    higher = sa.case((target_table.c.sequence > floor, target_table.c.sequence), else_=floor) + 1
    statement = insert.on_conflict_do_update(index_elements=["service", "environment"], set_={"sequence": higher})
    return int(connection.execute(statement.returning(target_table.c.sequence)).scalar_one())


def good(connection: Connection, service: str, environment: str) -> str:
    """Id of the rollout whose release is the newest known good one; empty when there is none."""
    query = sa.select(target_table.c.good).where(
        target_table.c.service == service, target_table.c.environment == environment
    )
    return connection.execute(query).scalar() or ""


def set_good(connection: Connection, service: str, environment: str, identity: str) -> None:
    """Note that a rollout's release has proved itself."""
    connection.execute(
        target_table.update()
        .where(target_table.c.service == service, target_table.c.environment == environment)
        .values(good=identity)
    )


def build_for(connection: Connection, *, service: str, repository: str, commit: str, file: str) -> BuildRow:
    """The build of a commit, wanted from now on if it was not yet."""
    values = {"id": new_id(), "service": service, "repository": repository, "commit": commit, "file": file}
    connection.execute(upsert(connection, build_table).values(**values, state="wanted").on_conflict_do_nothing())
    query = sa.select(build_table).where(
        build_table.c.repository == repository, build_table.c.commit == commit, build_table.c.file == file
    )
    return _build(connection, connection.execute(query).mappings().one())


def build(connection: Connection, identity: str) -> BuildRow:
    """The build of this id; NotFoundError when there is none."""
    row = connection.execute(sa.select(build_table).where(build_table.c.id == identity)).mappings().first()
    if row is None:
        raise NotFoundError(f"no build has the id {identity!r}.")
    return _build(connection, row)


def set_build(connection: Connection, identity: str, **changed: Any) -> None:
    """Change fields of a build; a build that is there stays as it is."""
    connection.execute(
        build_table.update().where(build_table.c.id == identity, build_table.c.state != "there").values(**changed)
    )


def digest_known(connection: Connection, digest: str) -> bool:
    """Whether a build with this digest exists."""
    return connection.execute(sa.select(build_table.c.id).where(build_table.c.digest == digest)).first() is not None


def waiting_for(connection: Connection, build_row: BuildRow) -> list[Rollout]:
    """The rollouts that wait for a build."""
    query = sa.select(rollout_table).where(
        rollout_table.c.state == "building",
        rollout_table.c.repository == build_row.repository,
        rollout_table.c.commit == build_row.commit,
        rollout_table.c.file == build_row.file,
    )
    return [Rollout(**row) for row in connection.execute(query).mappings()]


def finish(connection: Connection, identity: str, state: str, reason: str = "") -> Rollout:
    """End a rollout."""
    return update_rollout(connection, identity, state=state, reason=reason, finished=stamp())


def _build(connection: Connection, row: sa.RowMapping) -> BuildRow:
    now = connection.execute(sa.select(epoch(connection))).scalar_one()
    values = dict(row)
    values["asked"] = now - values["asked"] if values["asked"] else 0.0
    return BuildRow(**values)
