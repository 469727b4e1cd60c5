"""Tokens and webhooks: who may talk to the server, and as whom."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from waybill.core.clock import stamp
from waybill.core.errors import NotFoundError
from waybill.deploy.access import Token
from waybill.infra.db import Connection, metadata, upsert

token_table = sa.Table(
    "token",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("services", sa.String(200), nullable=False),
    sa.Column("environments", sa.String(200), nullable=False),
    sa.Column("expires", sa.String(24), nullable=False, server_default=""),
    sa.Column("revoked", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("created", sa.String(24), nullable=False),
)

hook_table = sa.Table(
    "hook",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("forge", sa.String(32), nullable=False),
    sa.Column("repository", sa.String(200), nullable=False),
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("created", sa.String(24), nullable=False),
)

delivery_table = sa.Table(
    "delivery",
    metadata,
    sa.Column("hook", sa.String(36), primary_key=True),
    sa.Column("delivery", sa.String(128), primary_key=True),
    sa.Column("at", sa.String(24), nullable=False),
)


_HOOK = sa.select(hook_table).where(hook_table.c.id == sa.bindparam("hook"))
_DELIVERY: dict[str, Any] = {}


def add_token(connection: Connection, token: Token, digest: str, actor: str) -> None:
    """Keep a token by the hex SHA-256 of its secret."""
    connection.execute(
        token_table.insert().values(
            id=token.id,
            hash=digest,
            name=token.name,
            role=token.role,
            services=token.services,
            environments=token.environments,
            expires=token.expires,
            actor=actor,
            created=stamp(),
        )
    )


def token_and_hash(connection: Connection, identity: str) -> tuple[Token, str] | None:
    """A token and the hash of its secret, or None."""
    row = connection.execute(sa.select(token_table).where(token_table.c.id == identity)).mappings().first()
    return None if row is None else (_token(row), row["hash"])


def tokens(connection: Connection) -> list[Token]:
    """All tokens, oldest first."""
    return [_token(row) for row in connection.execute(sa.select(token_table).order_by(token_table.c.id)).mappings()]


def revoke_token(connection: Connection, identity: str) -> None:
    """Refuse a token from now on."""
    changed = connection.execute(token_table.update().where(token_table.c.id == identity).values(revoked=True))
    if not changed.rowcount:
        raise NotFoundError(f"no token has the id {identity!r}.", "waybill token list shows them.")


def add_hook(connection: Connection, identity: str, forge: str, repository: str, actor: str) -> None:
    """Make a webhook address known; its secret stands in the data folder."""
    connection.execute(
        hook_table.insert().values(id=identity, forge=forge, repository=repository, actor=actor, created=stamp())
    )


def hook(connection: Connection, identity: str) -> tuple[str, str] | None:
    """(forge, repository) of a webhook address, or None."""
    row = connection.execute(_HOOK, {"hook": identity}).first()
    return None if row is None else (row.forge, row.repository)


def hooks(connection: Connection) -> list[dict[str, str]]:
    """All webhook addresses."""
    return [dict(row) for row in connection.execute(sa.select(hook_table).order_by(hook_table.c.created)).mappings()]


def remove_hook(connection: Connection, identity: str) -> None:
    """Forget a webhook address."""
    if not connection.execute(hook_table.delete().where(hook_table.c.id == identity)).rowcount:
        raise NotFoundError(f"no hook has the id {identity!r}.")


def first_delivery(connection: Connection, hook_id: str, delivery: str) -> bool:
    """Note a delivery; returns whether it is the first of its id."""
    name = connection.dialect.name
    if name not in _DELIVERY:  # built once: building it takes longer than executing it
        insert = upsert(connection, delivery_table).on_conflict_do_nothing()
        _DELIVERY[name] = insert.returning(delivery_table.c.hook)
    # What came back, not how many rows: drivers count a conflicting insert differently.
    row = {"hook": hook_id, "delivery": delivery[:128], "at": stamp()}
    return connection.execute(_DELIVERY[name], row).first() is not None


def last_deliveries(connection: Connection) -> dict[str, str]:
    """Hook → when it last delivered."""
    query = sa.select(delivery_table.c.hook, sa.func.max(delivery_table.c.at)).group_by(delivery_table.c.hook)
    return {row[0]: row[1] for row in connection.execute(query)}


def forget_deliveries(connection: Connection, before: str) -> int:
    """Drop the ids of deliveries older than a stamp."""
    return connection.execute(delivery_table.delete().where(delivery_table.c.at < before)).rowcount


def _token(row: sa.RowMapping) -> Token:
    return Token(**{name: row[name] for name in Token.__struct_fields__})
