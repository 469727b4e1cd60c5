"""The database: SQLite by default, PostgreSQL by a setting, the same code for both.

Stores are plain functions that take a SQLAlchemy ``Connection``; they run in threads, never on the event loop.
Writes of concurrent requests share one transaction and so one fsync: a writer thread takes all that wait, runs them,
commits once, and only then answers. A function that raises undoes itself alone: the batch runs again, each in its own
savepoint. Since that, a lost connection or a deadlock makes the whole batch run again, a function given to ``write``
touches nothing but its connection.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, OperationalError

from waybill.core.errors import UnavailableError

T = TypeVar("T")
Connection = sa.Connection

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)

Serial = sa.BigInteger().with_variant(sa.Integer, "sqlite")
"""Type of a counting primary key."""

BATCH = 256
CHANNEL = "waybill"
_NOTIFY = sa.text(f"SELECT pg_notify('{CHANNEL}', topic) FROM unnest(CAST(:topics AS text[])) AS topic")  # noqa: S608 - our own name
PATIENCE = 15.0
"""Seconds for which a write is tried again while the database does not answer."""


class _Job:
    __slots__ = ("error", "function", "future", "loop", "result", "topics")

    def __init__(self, function: Callable[[Connection], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.function = function
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.result: Any = None
        self.error: BaseException | None = None
        self.topics: list[str] = []


class Database:
    """One database, opened.

    Args:
        url: ``sqlite:////absolute/file`` or ``postgresql://user@host/name``.
    """

    def __init__(self, url: str) -> None:
        parsed = sa.make_url(url)
        self.postgres = parsed.get_backend_name() == "postgresql"
        if self.postgres:
            parsed = parsed.set(drivername="postgresql+psycopg")
            self.engine = sa.create_engine(parsed, pool_size=6, pool_pre_ping=True, pool_recycle=1800)
        else:
            self.engine = sa.create_engine(
                parsed, pool_size=6, connect_args={"check_same_thread": False, "timeout": 20}
            )
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        self.url = parsed
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._listeners: defaultdict[str, list[Callable[[], None]]] = defaultdict(list)
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="db-read")
        self._writer = threading.Thread(target=self._write_loop, name="db-write", daemon=True)
        self._writer.start()
        self._closing = threading.Event()
        self._bell: threading.Thread | None = None
        self._speaking = 0

    async def write(self, function: Callable[[Connection], T]) -> T:
        """Run ``function`` in a transaction; returns its result once that is durable.

        Raises:
            UnavailableError: The database did not answer for ``PATIENCE`` seconds.
        """
        job = _Job(function, asyncio.get_running_loop())
        self._jobs.put(job)
        result: T = await job.future
        return result

    async def read(self, function: Callable[[Connection], T]) -> T:
        """Run a function that only reads; it sees one consistent state."""

        def run() -> T:
            with self.engine.connect() as connection:
                return function(connection)

        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    def listen(self, topic: str, callback: Callable[[], None]) -> None:
        """Call ``callback`` on its event loop after a commit that notified ``topic``, on any server."""
        loop = asyncio.get_running_loop()

        def ring() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(callback)

        self._listeners[topic].append(ring)
        if self.postgres and self._bell is None:
            self._bell = threading.Thread(target=self._listen_loop, name="db-listen", daemon=True)
            self._bell.start()

    def close(self) -> None:
        """Finish the writes that wait, then close; no write may follow."""
        self._closing.set()
        self._jobs.put(None)
        self._writer.join(timeout=20)
        self._readers.shutdown()
        self.engine.dispose()

    def _write_loop(self) -> None:
        closing = False
        while not closing:
            job = self._jobs.get()
            batch: list[_Job] = []
            while job is not None:
                batch.append(job)
                if len(batch) == BATCH or self._jobs.empty():
                    break
                job = self._jobs.get()
            closing = job is None
            if batch:
                self._perform(batch)

    def _perform(self, batch: list[_Job]) -> None:
        deadline = time.monotonic() + PATIENCE
        pause = 0.05
        while True:
            try:
                self._transact(batch)
                break
            except Exception as error:  # noqa: BLE001 - whatever failed belongs to those who wait
                if not _transient(error) or time.monotonic() > deadline or self._closing.is_set():
                    told = UnavailableError("the database does not answer.", "Look at its log and its disk.")
                    for job in batch:
                        job.error = told if _transient(error) else error
                        job.error.__cause__ = error if job.error is told else error.__cause__
                    break
                time.sleep(pause)
                pause = min(pause * 2, 2.0)
        topics = {topic for job in batch if job.error is None for topic in job.topics}
        for loop in {job.loop for job in batch}:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, [job for job in batch if job.loop is loop])
        self._ring(topics)

    def _transact(self, batch: list[_Job]) -> None:
        """All in one transaction; when one raises, again with a savepoint around each (savepoints cost a third)."""
        try:
            self._attempt(batch, apart=False)
        except Exception as error:
            if len(batch) == 1 or _transient(error):
                raise
            self._attempt(batch, apart=True)

    def _attempt(self, batch: list[_Job], *, apart: bool) -> None:
        with self.engine.connect() as connection, connection.begin():
            for job in batch:
                job.error = None
                connection.info["topics"] = job.topics = []
                if apart:
                    _perform_apart(connection, job)
                else:
                    job.result = job.function(connection)
            topics = sorted({topic for job in batch if job.error is None for topic in job.topics})
            if self.postgres and topics:
                raw: Any = connection.connection.driver_connection
                self._speaking = raw.info.backend_pid
                connection.execute(_NOTIFY, {"topics": topics})

    def _ring(self, topics: set[str]) -> None:
        for topic in topics:
            for ring in tuple(self._listeners.get(topic, ())):
                ring()

    def _listen_loop(self) -> None:
        import psycopg

        while not self._closing.is_set():
            try:
                raw = self.url.set(drivername="postgresql").render_as_string(hide_password=False)
                with psycopg.connect(raw, autocommit=True) as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    self._ring(set(self._listeners))  # whatever was said while nobody listened
                    while not self._closing.is_set():
                        for notice in connection.notifies(timeout=1.0):
                            if notice.pid != self._speaking:  # what this server said itself was rung at once
                                self._ring({notice.payload})
            except psycopg.Error:
                self._closing.wait(1.0)


def notify(connection: Connection, topic: str) -> None:
    """Ring ``topic`` once this write is durable."""
    connection.info.setdefault("topics", []).append(topic)


def epoch(connection: Connection) -> sa.ColumnElement[float]:
    """Seconds since 1970 by the database's clock, which several servers share; leases are measured by it."""
    if connection.dialect.name == "postgresql":
        return sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Double)
    return sa.literal(time.time(), sa.Double)


def upsert(connection: Connection, table: sa.Table) -> Any:
    """An ``INSERT`` with ``on_conflict_do_nothing`` and ``on_conflict_do_update``, as both databases have it."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
    return insert(table)


def _perform_apart(connection: Connection, job: _Job) -> None:
    try:
        with connection.begin_nested():
            job.result = job.function(connection)
    except Exception as error:
        if _transient(error):
            raise
        job.error = error


def _settle(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.future.done():
            continue
        if job.error is None:
            job.future.set_result(job.result)
        else:
            job.future.set_exception(job.error)


def _transient(error: BaseException) -> bool:
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:  # PostgreSQL: serialisation failure, deadlock, shutting down, starting up, too many clients
        return state in {"40001", "40P01", "57P01", "57P02", "57P03", "53300", "08006", "08003", "08001"}
    text = str(error.orig)
    return isinstance(error, OperationalError) and ("locked" in text or "connection" in text)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy begins and commits; the driver must not guess
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    # The writer takes the write lock at once, so that it never fails half-way with "database is locked".
    writing = threading.current_thread().name == "db-write"
    # Said to the driver itself: every read begins with this, and SQLAlchemy's own way costs more than most reads.
    raw: Any = connection.connection.driver_connection
    raw.execute("BEGIN IMMEDIATE" if writing else "BEGIN").close()
