"""Hosts, enrolment tokens, sealed keys, what each host was told and what it said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from waybill.core.clock import stamp
from waybill.core.errors import ConflictError, ForbiddenError, NotFoundError
from waybill.deploy.model import Host
from waybill.infra.db import Connection, Serial, epoch, metadata, notify, upsert
from waybill.wire.agent import Abandon, BuildOrder, Desired, Remove, Report

TOLD = "told"
"""Topic: some host is to be told something."""
REPORTED = "reported"
"""Topic: some host said something new of a service."""
GONE_AFTER = 30.0
"""Seconds without a sign after which a host that a dead server called connected no longer counts as connected."""

host_table = sa.Table(
    "host",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("labels", sa.Text, nullable=False),
    sa.Column("recipient", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("serial", sa.String(64), nullable=False),
    sa.Column("enrolled", sa.String(24), nullable=False),
    sa.Column("revoked", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("arch", sa.String(32), nullable=False, server_default=""),
    sa.Column("facts", sa.Text, nullable=False, server_default=""),
    sa.Column("connected", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("seen", sa.String(24), nullable=False, server_default=""),
    sa.Column("seen_epoch", sa.Double, nullable=False, server_default="0"),
)

enrolment_table = sa.Table(
    "enrolment",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("key", sa.String(64), nullable=False),
    sa.Column("labels", sa.Text, nullable=False),
    sa.Column("uses", sa.Integer, nullable=False),
    sa.Column("expires", sa.String(24), nullable=False),
    sa.Column("actor", sa.String(128), nullable=False),
)

sealed_table = sa.Table(
    "sealed_key",
    metadata,
    sa.Column("service", sa.String(64), primary_key=True),
    sa.Column("environment", sa.String(64), primary_key=True),
    sa.Column("host", sa.String(64), primary_key=True),
    sa.Column("armor", sa.Text, nullable=False),
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("at", sa.String(24), nullable=False),
)

told_table = sa.Table(
    "told",
    metadata,
    sa.Column("host", sa.String(64), primary_key=True),
    sa.Column("about", sa.String(160), primary_key=True),
    sa.Column("revision", Serial, nullable=False, index=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)

report_table = sa.Table(
    "report",
    metadata,
    sa.Column("host", sa.String(64), primary_key=True),
    sa.Column("service", sa.String(64), primary_key=True),
    sa.Column("environment", sa.String(64), primary_key=True),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("live_sequence", sa.Integer, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)

counter_table = sa.Table(
    "counter",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

Told = Desired | Abandon | Remove | BuildOrder

# What every word of every host needs is built once: building a statement takes longer than executing it.
_ADMISSION = sa.select(host_table.c.serial, host_table.c.revoked).where(host_table.c.name == sa.bindparam("host"))
_TOLD_TO = sa.select(told_table.c.body).where(told_table.c.host == sa.bindparam("of")).order_by(told_table.c.revision)
_REPORT_OF = sa.select(report_table.c.body).where(
    report_table.c.host == sa.bindparam("of"),
    report_table.c.service == sa.bindparam("about"),
    report_table.c.environment == sa.bindparam("into"),
)
_PUT_REPORT: dict[str, Any] = {}


def _put_report(connection: Connection) -> Any:
    name = connection.dialect.name
    if name not in _PUT_REPORT:
        insert = upsert(connection, report_table)
        changed = {name: insert.excluded[name] for name in ("sequence", "live_sequence", "body")}
        _PUT_REPORT[name] = insert.on_conflict_do_update(
            index_elements=["host", "service", "environment"], set_=changed
        )
    return _PUT_REPORT[name]


def next_revision(connection: Connection) -> int:
    """The next number of the one counter; holding its row keeps revisions in order of commit."""
    insert = upsert(connection, counter_table).values(name="revision", value=1)
    statement = insert.on_conflict_do_update(index_elements=["name"], set_={"value": counter_table.c.value + 1})
    return int(connection.execute(statement.returning(counter_table.c.value)).scalar_one())


def revision(connection: Connection) -> int:
    """The newest number of the counter; an agent that knows a higher one notices that an older copy was put back."""
    query = sa.select(counter_table.c.value).where(counter_table.c.name == "revision")
    return int(connection.execute(query).scalar() or 0)


def add_enrolment(connection: Connection, row: dict[str, object]) -> None:
    """Keep an enrolment token: id, key (hex SHA-256 of its secret), labels, uses, expires, actor."""
    connection.execute(enrolment_table.insert().values(**row))


def enrolment_key(connection: Connection, identity: str) -> tuple[str, dict[str, str]]:
    """Key and labels of an enrolment token that may still be used; ForbiddenError otherwise."""
    row = connection.execute(sa.select(enrolment_table).where(enrolment_table.c.id == identity)).mappings().first()
    if row is None or row["uses"] < 1 or row["expires"] < stamp():
        raise ForbiddenError(
            "this enrolment token is unknown, used up or expired.", "Ask for a new one: waybill enroll."
        )
    return row["key"], msgspec.json.decode(row["labels"], type=dict[str, str])


def add_host(connection: Connection, enrolment: str, host: Host, serial: str) -> None:
    """Enrol a host and use up one use of the token; a name that is taken is refused unless it was revoked."""
    used = connection.execute(
        enrolment_table.update()
        .where(enrolment_table.c.id == enrolment, enrolment_table.c.uses > 0)
        .values(uses=enrolment_table.c.uses - 1)
    ).rowcount
    if not used:
        raise ForbiddenError("this enrolment token is used up.", "Ask for a new one: waybill enroll.")
    known = connection.execute(sa.select(host_table.c.revoked).where(host_table.c.name == host.name)).scalar()
    if known is False:
        raise ConflictError(
            f"a host called {host.name!r} is enrolled already.",
            "Choose another --name, or revoke the old one: waybill hosts revoke NAME.",
        )
    connection.execute(host_table.delete().where(host_table.c.name == host.name))
    connection.execute(
        host_table.insert().values(
            name=host.name,
            labels=msgspec.json.encode(host.labels).decode(),
            recipient=host.recipient,
            fingerprint=host.fingerprint,
            serial=serial,
            enrolled=stamp(),
            arch=host.arch,
            facts=host.facts,
        )
    )


def hosts(connection: Connection) -> list[Host]:
    """All hosts, by name."""
    now = connection.execute(sa.select(epoch(connection))).scalar_one()
    rows = connection.execute(sa.select(host_table).order_by(host_table.c.name)).mappings()
    return [_host(row, now) for row in rows]


def host(connection: Connection, name: str) -> Host:
    """The host of this name; NotFoundError when there is none."""
    now = connection.execute(sa.select(epoch(connection))).scalar_one()
    row = connection.execute(sa.select(host_table).where(host_table.c.name == name)).mappings().first()
    if row is None:
        raise NotFoundError(f"no host is called {name!r}.", "waybill hosts lists them.")
    return _host(row, now)


def admit(connection: Connection, name: str, serial: str) -> None:
    """Let in the one certificate (serial in hex) of an enrolled host.

    Raises:
        ForbiddenError: It is not; the sentence says which of the reasons it is, since what to do differs.
    """
    row = connection.execute(_ADMISSION, {"host": name}).first()
    again = "Its services go on. To connect it, make a token with waybill enroll and use it there: "
    again += "waybill agent enroll TOKEN --force"
    if row is None:
        raise ForbiddenError(
            f"this server does not know {name}: its database is another than when {name} enrolled.", again
        )
    if row.revoked:
        raise ForbiddenError(f"{name} was revoked.", again)
    if row.serial != serial:
        raise ForbiddenError(f"{name} was enrolled again since, with another certificate.", again)


def set_labels(connection: Connection, name: str, labels: dict[str, str]) -> None:
    """Give a host other labels; what runs there keeps running."""
    host(connection, name)
    connection.execute(
        host_table.update().where(host_table.c.name == name).values(labels=msgspec.json.encode(labels).decode())
    )


def revoke_host(connection: Connection, name: str) -> None:
    """Refuse the host's certificate from now on and forget the keys that were sealed to it."""
    host(connection, name)
    connection.execute(host_table.update().where(host_table.c.name == name).values(revoked=True, connected=False))
    connection.execute(sealed_table.delete().where(sealed_table.c.host == name))
    notify(connection, TOLD)


def heard(connection: Connection, names: Iterable[str], *, connected: bool = True) -> None:
    """Note that these hosts gave a sign, or that their streams closed."""
    values = {"connected": connected, "seen": stamp(), "seen_epoch": epoch(connection)}
    connection.execute(host_table.update().where(host_table.c.name.in_(list(names))).values(**values))


def put_facts(connection: Connection, name: str, arch: str, facts: str) -> None:
    """Keep what a host says of itself, and when it came in, so that its clock can be compared with ours."""
    facts = msgspec.json.encode(msgspec.json.decode(facts, type=dict) | {"received": stamp()}).decode()
    connection.execute(host_table.update().where(host_table.c.name == name).values(arch=arch, facts=facts))


def tell(connection: Connection, messages: Mapping[str, Told], about: str) -> None:
    """Leave a message for each of these hosts, in place of the last one about the same thing."""
    rows = [
        {
            "host": name,
            "about": about,
            "revision": message.revision,
            "kind": type(message).__name__,
            "body": msgspec.json.encode(message).decode(),
        }
        for name, message in messages.items()
    ]
    if not rows:
        return
    insert = upsert(connection, told_table)
    changed = {name: insert.excluded[name] for name in ("revision", "kind", "body")}
    connection.execute(insert.on_conflict_do_update(index_elements=["host", "about"], set_=changed), rows)
    notify(connection, TOLD)


def untell(connection: Connection, host_name: str, about: str) -> None:
    """Take a message back that no longer matters, such as an order for a build that is there."""
    connection.execute(told_table.delete().where(told_table.c.host == host_name, told_table.c.about == about))


def told_since(connection: Connection, revision: int) -> list[tuple[str, int, str]]:
    """(host, revision, message as JSON) of all that was told after this revision, in order."""
    query = sa.select(told_table.c.host, told_table.c.revision, told_table.c.body)
    rows = connection.execute(query.where(told_table.c.revision > revision).order_by(told_table.c.revision))
    return [(row.host, row.revision, row.body) for row in rows]


def told_to(connection: Connection, host_name: str) -> list[str]:
    """All messages that stand for a host, as JSON, oldest first."""
    return list(connection.execute(_TOLD_TO, {"of": host_name}).scalars())


def put_report(connection: Connection, host_name: str, report: Report) -> Report | None:
    """Keep a host's newest word about a service; returns the one before."""
    before = report_of(connection, host_name, report.service, report.environment)
    row = {
        "host": host_name,
        "service": report.service,
        "environment": report.environment,
        "sequence": max(report.sequence, report.highest),
        "live_sequence": report.live_sequence,
        "body": msgspec.json.encode(report).decode(),
    }
    connection.execute(_put_report(connection), row)
    if before is None or msgspec.structs.replace(before, at=report.at) != report:
        notify(connection, REPORTED)
    return before


def report_of(connection: Connection, host_name: str, service: str, environment: str) -> Report | None:
    """What a host last said about a service."""
    key = {"of": host_name, "about": service, "into": environment}
    body = connection.execute(_REPORT_OF, key).scalar()
    return None if body is None else msgspec.json.decode(body, type=Report)


def reports(connection: Connection) -> list[tuple[str, Report]]:
    """(host, newest report) of every service on every host."""
    query = sa.select(report_table.c.host, report_table.c.body).order_by(report_table.c.host)
    return [(row.host, msgspec.json.decode(row.body, type=Report)) for row in connection.execute(query)]


def highest_sequence(connection: Connection, service: str, environment: str) -> int:
    """The highest sequence that any host ever reported, so that a server that lost its past counts on from there."""
    query = sa.select(sa.func.max(report_table.c.sequence), sa.func.max(report_table.c.live_sequence)).where(
        report_table.c.service == service, report_table.c.environment == environment
    )
    return max((value or 0 for value in connection.execute(query).one()), default=0)


def put_sealed(connection: Connection, service: str, environment: str, host_name: str, armor: str, actor: str) -> None:
    """Keep an environment's identity as sealed to one host."""
    if host(connection, host_name).revoked:
        raise ForbiddenError(f"{host_name} is revoked.", "Enrol it again first.")
    row = {"service": service, "environment": environment, "host": host_name, "armor": armor, "actor": actor}
    insert = upsert(connection, sealed_table).values(**row, at=stamp())
    changed = {"armor": armor, "actor": actor, "at": stamp()}
    connection.execute(insert.on_conflict_do_update(index_elements=["service", "environment", "host"], set_=changed))


def drop_sealed(connection: Connection, service: str, environment: str, host_name: str) -> None:
    """Forget the identity sealed to one host."""
    connection.execute(
        sealed_table.delete().where(
            sealed_table.c.service == service,
            sealed_table.c.environment == environment,
            sealed_table.c.host == host_name,
        )
    )


def sealed(connection: Connection, service: str, environment: str) -> dict[str, str]:
    """Host → armor of an environment's identity."""
    query = sa.select(sealed_table.c.host, sealed_table.c.armor).where(
        sealed_table.c.service == service, sealed_table.c.environment == environment
    )
    return {row.host: row.armor for row in connection.execute(query)}


def _host(row: sa.RowMapping, now: float) -> Host:
    return Host(
        name=row["name"],
        labels=msgspec.json.decode(row["labels"], type=dict[str, str]),
        recipient=row["recipient"],
        fingerprint=row["fingerprint"],
        seen=row["seen"],
        connected=bool(row["connected"]) and now - row["seen_epoch"] < GONE_AFTER,
        revoked=bool(row["revoked"]),
        arch=row["arch"],
        facts=row["facts"],
    )
