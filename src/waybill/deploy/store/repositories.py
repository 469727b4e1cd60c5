"""Repositories, the branch heads that were seen, and grants."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from waybill.core.clock import stamp
from waybill.core.errors import ConflictError, NotFoundError
from waybill.core.ids import new_id
from waybill.deploy.model import Grant, Repository
from waybill.infra.db import Connection, metadata, upsert

repository_table = sa.Table(
    "repository",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("trouble", sa.Text, nullable=False, server_default=""),
    sa.Column("created", sa.String(24), nullable=False),
)

head_table = sa.Table(
    "head",
    metadata,
    sa.Column("repository", sa.String(200), primary_key=True),
    sa.Column("branch", sa.String(400), primary_key=True),
    sa.Column("commit", sa.String(64), nullable=False),
    sa.Column("seen", sa.String(24), nullable=False),
)

grant_table = sa.Table(
    "environment_grant",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("repository", sa.String(200), nullable=False),
    sa.Column("service", sa.String(64), nullable=False),
    sa.Column("environment", sa.String(64), nullable=False),
    sa.Column("branches", sa.Text, nullable=False),
    sa.Column("hosts", sa.Text, nullable=False),
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("created", sa.String(24), nullable=False),
    sa.UniqueConstraint("service", "environment"),
)


def put_repository(connection: Connection, repository: Repository) -> bool:
    """Add or move a repository; returns whether it is new."""
    known = connection.execute(
        sa.select(repository_table.c.url).where(repository_table.c.name == repository.name)
    ).scalar()
    row = {"name": repository.name, "url": repository.url, "created": stamp()}
    insert = upsert(connection, repository_table).values(**row)
    connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_={"url": repository.url}))
    return known is None


def repository(connection: Connection, name: str) -> Repository:
    """The repository of this name; NotFoundError when there is none."""
    row = connection.execute(sa.select(repository_table).where(repository_table.c.name == name)).mappings().first()
    if row is None:
        raise NotFoundError(f"no repository is called {name!r}.", "waybill repository add NAME URL makes it known.")
    return _repository(row)


def repositories(connection: Connection) -> list[Repository]:
    """All repositories, by name."""
    rows = connection.execute(sa.select(repository_table).order_by(repository_table.c.name)).mappings()
    return [_repository(row) for row in rows]


def set_trouble(connection: Connection, name: str, trouble: str) -> bool:
    """Note why a repository cannot be fetched, or with an empty text that it can; returns whether that is news."""
    query = sa.select(repository_table.c.trouble).where(repository_table.c.name == name)
    before = connection.execute(query.with_for_update()).scalar()
    if before is None or before == trouble:
        return False
    connection.execute(repository_table.update().where(repository_table.c.name == name).values(trouble=trouble))
    return bool(before) != bool(trouble)


def heads(connection: Connection, repository: str) -> dict[str, str]:
    """Branch → commit, as last seen by the server."""
    rows = connection.execute(sa.select(head_table).where(head_table.c.repository == repository)).mappings()
    return {row["branch"]: row["commit"] for row in rows}


def put_head(connection: Connection, repository: str, branch: str, commit: str) -> None:
    """Remember where a branch was seen."""
    row = {"repository": repository, "branch": branch, "commit": commit, "seen": stamp()}
    insert = upsert(connection, head_table).values(**row)
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=["repository", "branch"], set_={"commit": commit, "seen": row["seen"]}
        )
    )


def drop_head(connection: Connection, repository: str, branch: str) -> None:
    """Forget a branch that is gone."""
    connection.execute(head_table.delete().where(head_table.c.repository == repository, head_table.c.branch == branch))


def put_grant(connection: Connection, grant: Grant, actor: str) -> Grant:
    """Grant an environment to a repository; replaces the grant it had, refuses one of another repository."""
    old = grant_of(connection, grant.service, grant.environment)
    if old is not None and old.repository != grant.repository:
        raise ConflictError(
            f"{grant.service}/{grant.environment} is granted to {old.repository}.",
            "Revoke that grant first; one environment belongs to one repository.",
        )
    connection.execute(
        grant_table.delete().where(
            grant_table.c.service == grant.service, grant_table.c.environment == grant.environment
        )
    )
    kept = msgspec.structs.replace(grant, id=old.id if old else new_id())
    connection.execute(
        grant_table.insert().values(
            id=kept.id,
            repository=kept.repository,
            service=kept.service,
            environment=kept.environment,
            branches=msgspec.json.encode(kept.branches).decode(),
            hosts=msgspec.json.encode(kept.hosts).decode(),
            actor=actor,
            created=stamp(),
        )
    )
    return kept


def grant_of(connection: Connection, service: str, environment: str) -> Grant | None:
    """The grant of an environment."""
    query = sa.select(grant_table).where(grant_table.c.service == service, grant_table.c.environment == environment)
    row = connection.execute(query).mappings().first()
    return None if row is None else _grant(row)


def grants(connection: Connection, repository: str | None = None) -> list[Grant]:
    """All grants, or those of one repository."""
    query = sa.select(grant_table).order_by(grant_table.c.service, grant_table.c.environment)
    if repository is not None:
        query = query.where(grant_table.c.repository == repository)
    return [_grant(row) for row in connection.execute(query).mappings()]


def revoke_grant(connection: Connection, service: str, environment: str) -> Grant:
    """Take a grant back; what runs keeps running, nothing new is deployed."""
    grant = grant_of(connection, service, environment)
    if grant is None:
        raise NotFoundError(f"{service}/{environment} has no grant.")
    connection.execute(grant_table.delete().where(grant_table.c.id == grant.id))
    return grant


def _repository(row: sa.RowMapping) -> Repository:
    return Repository(name=row["name"], url=row["url"], trouble=row["trouble"])


def _grant(row: sa.RowMapping) -> Grant:
    return Grant(
        id=row["id"],
        repository=row["repository"],
        service=row["service"],
        environment=row["environment"],
        branches=tuple(msgspec.json.decode(row["branches"], type=list[str])),
        hosts=msgspec.json.decode(row["hosts"], type=dict[str, str]),
    )
