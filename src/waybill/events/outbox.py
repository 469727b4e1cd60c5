"""The outbox: work that must not be lost, leased.

A row is (handler, key). It is written in the transaction of what caused it, leased by one server at a time, renewed
while worked on, taken over when the lease runs out, retried with back-off, and set aside where a person sees it when
it keeps failing. Waking a row that waits changes nothing; waking one that is being worked on makes it run once more.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence

import msgspec
import sqlalchemy as sa

from waybill.core.clock import stamp
from waybill.core.ids import new_id
from waybill.events.model import Event, EventBody, LeaseLostError
from waybill.infra.db import Connection, Serial, epoch, metadata, notify, upsert

LEASE = 8.0
"""Seconds; a dead server's work is taken over after at most this long."""
ATTEMPTS = 12
"""Failures in a row after which a row is set aside for a person."""
TOPIC = "work"
EVENTS = "events"

event_table = sa.Table(
    "event",
    metadata,
    sa.Column("seq", Serial, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(36), nullable=False, unique=True),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("at", sa.String(24), nullable=False),
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("subject", sa.String(256), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index("ix_event_subject_seq", "subject", "seq"),
)

work_table = sa.Table(
    "work",
    metadata,
    sa.Column("id", Serial, primary_key=True, autoincrement=True),
    sa.Column("handler", sa.String(128), nullable=False),
    sa.Column("key", sa.String(256), nullable=False),
    sa.Column("due", sa.Double, nullable=False),
    sa.Column("wakes", sa.Integer, nullable=False, server_default="1"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("token", sa.Integer, nullable=False, server_default="0"),
    sa.Column("owner", sa.String(64), nullable=False, server_default=""),
    sa.Column("leased_until", sa.Double, nullable=False, server_default="0"),
    sa.Column("aside", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("error", sa.Text, nullable=False, server_default=""),
    sa.UniqueConstraint("handler", "key"),
    sa.Index("ix_work_aside_due", "aside", "due"),
)

handlers_of: dict[str, list[str]] = {}
"""Event kind → names of the handlers that react to it; filled by ``events.dispatch``."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """A leased row.

    Attributes:
        id: Row.
        handler: Who works on it.
        key: Event id, or the name of the state to look at.
        token: Fencing token of this lease; rises with each one.
        wakes: Wake-ups seen when it was leased.
        attempts: Leases since the last success, this one included.
        error: What the last attempt failed with.
    """

    id: int
    handler: str
    key: str
    token: int
    wakes: int
    attempts: int
    error: str = ""


class _Statements:
    """What the worker and every request need, built once for each kind of database: building takes longer than running.

    Args:
        connection: Says which kind it is.
    """

    def __init__(self, connection: Connection) -> None:
        row = work_table.c
        now = epoch(connection) if connection.dialect.name == "postgresql" else sa.bindparam("now", type_=sa.Double)
        later = now + sa.bindparam("pause", type_=sa.Double)
        ours = sa.and_(row.id == sa.bindparam("row"), row.token == sa.bindparam("lease"))
        unwoken = row.wakes == sa.bindparam("seen")

        insert = upsert(connection, work_table).values(handler=sa.bindparam("of"), key=sa.bindparam("about"), due=later)
        sooner = sa.case((row.due > insert.excluded.due, insert.excluded.due), else_=row.due)
        woken = {"wakes": row.wakes + 1, "due": sooner, "attempts": 0, "aside": False}
        self.wake = insert.on_conflict_do_update(index_elements=["handler", "key"], set_=woken)

        free = (
            sa.select(row.id)
            .where(row.aside.is_(False), row.due <= now, row.leased_until < now)
            .order_by(row.due)
            .limit(sa.bindparam("room", type_=sa.Integer))
            .with_for_update(skip_locked=True)
        )
        taken = {
            "leased_until": now + sa.bindparam("span", type_=sa.Double),
            "token": row.token + 1,
            "attempts": row.attempts + 1,
        }
        self.lease = (
            work_table.update()
            .where(row.id.in_(free))
            .values(owner=sa.bindparam("who"), **taken)
            .returning(*(row[name] for name in Work.__struct_fields__))
        )
        when = sa.case((row.leased_until > row.due, row.leased_until), else_=row.due)
        self.next_due = sa.select(sa.func.min(when) - now).where(row.aside.is_(False))
        self.finish = work_table.delete().where(ours, unwoken)
        due = sa.case((unwoken, later), else_=now)
        self.free = work_table.update().where(ours).values(leased_until=0, owner="", attempts=0, error="", due=due)


_RECORD = event_table.insert().returning(event_table.c.seq)
_EVENTS = sa.select(event_table).where(event_table.c.id.in_(sa.bindparam("events", expanding=True)))
_STATEMENTS: dict[str, _Statements] = {}


def _statements(connection: Connection) -> _Statements:
    name = connection.dialect.name
    if name not in _STATEMENTS:
        _STATEMENTS[name] = _Statements(connection)
    return _STATEMENTS[name]


def record(connection: Connection, body: EventBody, actor: str, event_id: str | None = None) -> Event:
    """Write down what happened, with one row of work for each handler that reacts to it."""
    identity, at = event_id or new_id(), stamp()
    text = msgspec.json.encode(body).decode()
    row = {"id": identity, "kind": type(body).__name__, "at": at, "actor": actor, "body": text}
    seq = connection.execute(_RECORD, {"subject": body.subject()[:256], **row}).scalar_one()
    for handler in handlers_of.get(type(body).__name__, ()):
        wake(connection, handler, identity)
    notify(connection, EVENTS)
    return Event(id=identity, seq=seq, at=at, actor=actor, body=body)


def wake(connection: Connection, handler: str, key: str, after: float = 0.0) -> None:
    """Have ``handler`` look at ``key`` in ``after`` seconds at the latest."""
    values = {"of": handler, "about": key, "pause": after, "now": time.time()}
    connection.execute(_statements(connection).wake, values)
    notify(connection, TOPIC)


def schedule(connection: Connection, handler: str, key: str, after: float) -> None:
    """Make sure that a row exists; one that is there stays as it is."""
    insert = upsert(connection, work_table).values(handler=handler, key=key, due=epoch(connection) + after)
    connection.execute(insert.on_conflict_do_nothing(index_elements=["handler", "key"]))


def lease(connection: Connection, owner: str, limit: int) -> list[Work]:
    """Take up to ``limit`` rows that are due and that nobody holds."""
    values = {"who": owner, "room": limit, "span": LEASE, "now": time.time()}
    return [Work(**row) for row in connection.execute(_statements(connection).lease, values).mappings()]


def next_due(connection: Connection) -> float | None:
    """Seconds until the next row becomes due or a lease may run out; None when there is no work."""
    return connection.execute(_statements(connection).next_due, {"now": time.time()}).scalar()


def renew(connection: Connection, works: Iterable[Work]) -> set[int]:
    """Hold on to these rows; returns the ids of those that are still ours."""
    until = epoch(connection) + LEASE
    kept = set()
    for work in works:
        statement = work_table.update().where(_ours(work)).values(leased_until=until)
        if connection.execute(statement).rowcount:
            kept.add(work.id)
    return kept


def check(connection: Connection, work: Work) -> None:
    """Raise ``LeaseLostError`` unless the row is still ours; the row stays locked until this transaction ends."""
    query = sa.select(work_table.c.id).where(_ours(work), work_table.c.leased_until >= epoch(connection))
    if connection.execute(query.with_for_update()).first() is None:
        raise LeaseLostError


def finish(connection: Connection, work: Work, again: float | None = None) -> None:
    """Done: the row goes, unless it was woken meanwhile or wants to run again in ``again`` seconds."""
    finish_all(connection, [(work, again)])


def finish_all(connection: Connection, done: Sequence[tuple[Work, float | None]]) -> None:
    """Finish many rows, each with the seconds after which it wants to run again, or None."""
    statements, now = _statements(connection), time.time()
    rows = [
        {"row": work.id, "lease": work.token, "seen": work.wakes, "pause": again or 0.0, "now": now}
        for work, again in done
    ]
    leaving = [row for row, (_, again) in zip(rows, done, strict=True) if again is None]
    gone = connection.execute(statements.finish, leaving).rowcount if leaving else 0
    if gone < len(rows):  # some stay; freeing a row that has gone changes nothing
        connection.execute(statements.free, rows)
        notify(connection, TOPIC)


def fail(connection: Connection, work: Work, reason: str) -> bool:
    """The attempt failed: try again later, or set it aside; returns whether it was set aside."""
    aside = work.attempts >= ATTEMPTS
    pause = min(300.0, 0.5 * 2.0**work.attempts) * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, no secret
    connection.execute(
        work_table.update()
        .where(_ours(work))
        .values(leased_until=0, owner="", error=reason[:2000], aside=aside, due=epoch(connection) + pause)
    )
    notify(connection, TOPIC)
    return aside


def release(connection: Connection, works: Iterable[Work]) -> None:
    """Give rows back unworked, when the server stops."""
    for work in works:
        connection.execute(
            work_table.update().where(_ours(work)).values(leased_until=0, owner="", attempts=work.attempts - 1)
        )
    notify(connection, TOPIC)


def owners(connection: Connection) -> list[str]:
    """Who holds leases now."""
    query = sa.select(work_table.c.owner).where(work_table.c.leased_until >= epoch(connection)).distinct()
    return list(connection.execute(query).scalars())


def orphan(connection: Connection, owners: Iterable[str]) -> None:
    """Take the rows of owners that are dead for certain, before their leases run out."""
    connection.execute(work_table.update().where(work_table.c.owner.in_(list(owners))).values(leased_until=0, owner=""))


def set_aside(connection: Connection) -> list[Work]:
    """The rows that kept failing, for a person to look at."""
    columns = [work_table.c[name] for name in Work.__struct_fields__]
    rows = connection.execute(sa.select(*columns).where(work_table.c.aside).order_by(work_table.c.id))
    return [Work(**row) for row in rows.mappings()]


def struggling(connection: Connection) -> list[Work]:
    """The rows whose last attempt failed and that will be tried again."""
    columns = [work_table.c[name] for name in Work.__struct_fields__]
    query = sa.select(*columns).where(
        work_table.c.error != "", work_table.c.attempts > 0, work_table.c.aside.is_(False)
    )
    return [Work(**row) for row in connection.execute(query.order_by(work_table.c.id)).mappings()]


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """How the outbox stands.

    Attributes:
        due: Rows that are due or being worked on.
        aside: Rows that were set aside.
        age: Seconds for which the oldest due row has waited.
    """

    due: int
    aside: int
    age: float


def totals(connection: Connection) -> Totals:
    """How the outbox stands now."""
    now = connection.execute(sa.select(epoch(connection))).scalar_one()
    ready = sa.and_(work_table.c.aside.is_(False), work_table.c.due <= now)
    count, first = connection.execute(sa.select(sa.func.count(), sa.func.min(work_table.c.due)).where(ready)).one()
    aside = connection.execute(sa.select(sa.func.count()).where(work_table.c.aside)).scalar_one()
    return Totals(due=count, aside=aside, age=0.0 if first is None else max(0.0, now - first))


def _ours(work: Work) -> sa.ColumnElement[bool]:
    return sa.and_(work_table.c.id == work.id, work_table.c.token == work.token)


def events_since(connection: Connection, seq: int, limit: int = 200, subject: str | None = None) -> list[Event]:
    """Events recorded after position ``seq``, oldest first; kinds that this version does not know are passed over."""
    query = sa.select(event_table).where(event_table.c.seq > seq)
    if subject is not None:
        query = query.where(event_table.c.subject == subject)
    return _decode(connection.execute(query.order_by(event_table.c.seq).limit(limit)).mappings())


def latest_events(
    connection: Connection,
    limit: int = 100,
    subject: str | None = None,
    kinds: Iterable[str] | None = None,
    before: int | None = None,
) -> list[Event]:
    """The newest events, newest first; only of these kinds, only recorded before position ``before``, where given."""
    query = sa.select(event_table)
    if subject is not None:
        query = query.where(event_table.c.subject == subject)
    if kinds is not None:
        query = query.where(event_table.c.kind.in_(list(kinds)))
    if before is not None:
        query = query.where(event_table.c.seq < before)
    return _decode(connection.execute(query.order_by(event_table.c.seq.desc()).limit(limit)).mappings())


def newest_of(connection: Connection, kind: type[EventBody], subjects: Iterable[str]) -> dict[str, Event]:
    """Subject → the newest event of this kind about it."""
    newest = (
        sa.select(sa.func.max(event_table.c.seq))
        .where(event_table.c.kind == kind.__name__, event_table.c.subject.in_(list(subjects)))
        .group_by(event_table.c.subject)
    )
    rows = connection.execute(sa.select(event_table).where(event_table.c.seq.in_(newest))).mappings()
    return {event.body.subject(): event for event in _decode(rows)}


def event_of(connection: Connection, event_id: str) -> Event | None:
    """The event with this id."""
    return events_of(connection, [event_id]).get(event_id)


def events_of(connection: Connection, ids: Sequence[str]) -> dict[str, Event]:
    """Id → event, of those of these ids that this version knows."""
    if not ids:
        return {}
    return {event.id: event for event in _decode(connection.execute(_EVENTS, {"events": ids}).mappings())}


def _decode(rows: Iterable[sa.RowMapping]) -> list[Event]:
    events = []
    for row in rows:
        kind = EventBody.kinds.get(row["kind"])
        if kind is not None:
            body = msgspec.json.decode(row["body"], type=kind)
            events.append(Event(id=row["id"], seq=row["seq"], at=row["at"], actor=row["actor"], body=body))
    return events
