"""Brings a database to this version's tables: by itself, under one lock, after copying an SQLite file."""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from waybill.core.clock import stamp
from waybill.core.errors import ConflictError
from waybill.infra.db import Database, metadata

_LOCK = 0x57617962  # an arbitrary number for PostgreSQL's advisory lock


def config() -> Config:
    """Alembic's configuration; there is no alembic.ini."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    made.attributes["metadata"] = metadata
    return made


def upgrade(db: Database, folder: Path) -> str | None:
    """Apply the migrations that are missing.

    Args:
        db: The database.
        folder: The data folder; holds the lock file and, under ``backup/``, the copies of an SQLite file.

    Returns:
        The revision before, when anything was applied to a database that had tables; otherwise None.

    Raises:
        ConflictError: The database was written by a newer version.
    """
    made = config()
    scripts = ScriptDirectory.from_config(made)
    head = scripts.get_current_head()
    with _alone(db, folder), db.engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        connection.rollback()
        if current == head:
            return None
        if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
            raise ConflictError(
                f"the database is at revision {current}, which this version does not know.",
                "Start the newer waybill that wrote it, or restore a copy from backup/.",
            )
        if current is not None and not db.postgres:
            _copy(Path(str(db.url.database)), folder / "backup", current)
        with connection.begin():
            made.attributes["connection"] = connection
            command.upgrade(made, "head")
        return current


@contextmanager
def _alone(db: Database, folder: Path) -> Iterator[None]:
    if db.postgres:
        with db.engine.connect() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_lock(_LOCK)))
            try:
                yield
            finally:
                connection.execute(sa.select(sa.func.pg_advisory_unlock(_LOCK)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "migrate.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _copy(source: Path, folder: Path, revision: str) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"waybill-{revision}-{stamp().replace(':', '')}.sqlite"
    with sqlite3.connect(source) as old, sqlite3.connect(target) as new:
        old.backup(new)
    old.close()
    new.close()
    target.chmod(0o600)
