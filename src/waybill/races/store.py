"""The server's tables of race reports: kept before they are acknowledged, and by their ids only once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from waybill.core.errors import ConflictError, NotFoundError
from waybill.infra.db import Connection, metadata, upsert
from waybill.races.model import Report
from waybill.races.rules import Sighted
from waybill.wire.races import RaceInfo

sighting_table = sa.Table(
    "race_sighting",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("host", sa.String(100), nullable=False),
    sa.Column("build", sa.String(200), nullable=False),
    sa.Column("day", sa.String(10), nullable=False),
    sa.Column("at", sa.String(24), nullable=False),
    sa.Column("key_id", sa.String(64), nullable=False),
    sa.Column("title", sa.String(300), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("wanted", sa.String(20), nullable=False, server_default=""),
    sa.Column("issue", sa.String(20), nullable=False, server_default=""),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("report", sa.Text, nullable=False),
    sa.Index("ix_race_sighting_state_at", "state", "at"),
    sa.Index("ix_race_sighting_key_id_day", "key_id", "day"),
)

issue_table = sa.Table(
    "race_issue",
    metadata,
    sa.Column("key_id", sa.String(64), primary_key=True),
    sa.Column("number", sa.String(20), nullable=False, server_default=""),
    sa.Column("attempted", sa.Double, nullable=False, server_default="0"),
)
COUNTED = ("new", "filed")


def take(connection: Connection, sighted: Sighted) -> bool:
    """Keep a report; returns whether it is new."""
    insert = upsert(connection, sighting_table).values(
        id=sighted.id,
        host=sighted.host,
        build=sighted.build,
        day=sighted.day,
        at=sighted.at,
        key_id=sighted.report.key_id,
        title=sighted.report.title,
        state="new",
        report=msgspec.json.encode(sighted.report).decode(),
    )
    done = connection.execute(insert.on_conflict_do_nothing(index_elements=["id"]).returning(sighting_table.c.id))
    return done.first() is not None


def waiting(connection: Connection) -> list[Sighted]:
    """Reports that are to be filed."""
    query = sa.select(sighting_table).where(sighting_table.c.state == "new", sighting_table.c.wanted == "")
    return [_sighted(row) for row in connection.execute(query.order_by(sighting_table.c.at)).mappings()]


def wanted(connection: Connection) -> list[tuple[Sighted, str]]:
    """Reports that a person decided about, with the issue's number, or ``new``."""
    query = sa.select(sighting_table).where(sighting_table.c.wanted != "")
    return [(_sighted(row), row["wanted"]) for row in connection.execute(query).mappings()]


def infos(connection: Connection, state: str | None, limit: int = 1000) -> list[RaceInfo]:
    """Reports, newest first."""
    query = sa.select(sighting_table).order_by(sighting_table.c.at.desc()).limit(limit)
    if state is not None:
        query = query.where(sighting_table.c.state == state)
    return [_info(row) for row in connection.execute(query).mappings()]


def info(connection: Connection, start: str) -> RaceInfo:
    """The report whose id begins so, with its text.

    Raises:
        NotFoundError: There is none, or more than one.
    """
    query = sa.select(sighting_table).where(sighting_table.c.id.startswith(start, autoescape=True)).limit(2)
    rows = connection.execute(query).mappings().all()
    if len(rows) != 1:
        raise NotFoundError(
            f"{'several reports begin' if rows else 'no report begins'} with {start[:40]!r}.",
            "waybill races list --server shows their ids.",
        )
    return msgspec.structs.replace(_info(rows[0]), text=_sighted(rows[0]).report.text)


def decide(connection: Connection, identity: str, what: str) -> None:
    """Note what a person wants of a report in quarantine: an issue's number, ``new``, or ``discard``.

    Raises:
        ConflictError: It is not in quarantine.
    """
    change: dict[str, Any] = {"state": "discarded"} if what == "discard" else {"state": "new", "wanted": what}
    query = sighting_table.update().where(sighting_table.c.id == identity, sighting_table.c.state == "quarantine")
    if not connection.execute(query.values(reason="", **change)).rowcount:
        raise ConflictError(f"the report {identity[:12]} is not in quarantine.", "waybill races list --server --every")


def settle(connection: Connection, sighted: Sequence[str], **change: str) -> None:
    """Say what became of reports."""
    connection.execute(sighting_table.update().where(sighting_table.c.id.in_(sighted)).values(**change))


def counts(connection: Connection, races: Iterable[str], build: str, day: str) -> dict[str, int]:
    """Host → sightings of these races on a day in a build."""
    table = sighting_table.c
    query = (
        sa.select(table.host, sa.func.count())
        .where(table.key_id.in_(list(races)), table.build == build, table.day == day, table.state.in_(COUNTED))
        .group_by(table.host)
    )
    return {row[0]: row[1] for row in connection.execute(query)}


def issue(connection: Connection, key_id: str) -> tuple[str, float]:
    """(number, time of an attempt whose answer is owed) of a race."""
    row = connection.execute(sa.select(issue_table).where(issue_table.c.key_id == key_id)).mappings().first()
    return (row["number"], row["attempted"]) if row else ("", 0.0)


def put_issue(connection: Connection, key_id: str, **values: str | float) -> None:
    """Remember where a race was filed, or that it is about to be."""
    insert = upsert(connection, issue_table).values(key_id=key_id, **values)
    connection.execute(insert.on_conflict_do_update(index_elements=["key_id"], set_=values))


def now() -> float:
    """Seconds since 1970, by this server's clock; attempts are compared within minutes."""
    return time.time()


def _sighted(row: sa.RowMapping) -> Sighted:
    report = msgspec.json.decode(row["report"], type=Report)
    names = ("id", "host", "build", "day", "at")
    return Sighted(report=report, **{name: row[name] for name in names})


def _info(row: sa.RowMapping) -> RaceInfo:
    names = ("id", "host", "build", "at", "key_id", "title", "state", "issue", "reason")
    return RaceInfo(**{name: row[name] for name in names})
