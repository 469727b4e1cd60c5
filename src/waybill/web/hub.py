"""The open streams to agents: who is connected here, and how what is told reaches them.

One reader follows the table of what was told, whatever the number of hosts, and hands each message to the streams of
its host. A stream that cannot keep up is closed; the agent comes back and is told all that stands for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable

import msgspec
import sqlalchemy as sa

from waybill.core.clock import stamp
from waybill.deploy.store import hosts as store
from waybill.infra.db import Connection, Database
from waybill.wire.agent import Hello, LogsWanted

HEARTBEAT = 20
BACKLOG = 1000
"""Messages that may wait for one stream."""
SIGN = 10.0
"""Seconds between notes in the database that the connected hosts are still here."""


class Hub:
    """All streams of this server.

    Args:
        db: The database.
        server: Id of the database, by which agents notice that it lost its past.
    """

    def __init__(self, db: Database, server: str) -> None:
        self._db = db
        self._server = server
        self._streams: defaultdict[str, set[asyncio.Queue[bytes | None]]] = defaultdict(set)
        self._bell = asyncio.Event()
        self._last = 0
        self._stopping = False

    @property
    def connected(self) -> frozenset[str]:
        """Names of the hosts that have a stream here."""
        return frozenset(self._streams)

    async def run(self) -> None:
        """Hand on what is told, until cancelled."""
        self._db.listen(store.TOLD, self._bell.set)
        self._last = await self._db.read(_last_revision)
        signs = asyncio.create_task(self._give_signs())
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(5):
                        await self._bell.wait()
                self._bell.clear()
                await self._hand_on()
        finally:
            signs.cancel()

    async def stream(self, host: str) -> AsyncIterator[bytes]:
        """The lines for one connected agent: a greeting, all that stands for it, then what comes."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(BACKLOG)
        self._streams[host].add(queue)
        try:
            await self._db.write(lambda connection: store.heard(connection, [host]))
            newest, standing = await self._db.read(
                lambda connection: (store.revision(connection), store.told_to(connection, host))
            )
            hello = Hello(server=self._server, host=host, at=stamp(), heartbeat=HEARTBEAT, revision=newest)
            yield msgspec.json.encode(hello) + b"\n" + b"".join(line.encode() + b"\n" for line in standing)
            while not self._stopping:
                try:
                    async with asyncio.timeout(HEARTBEAT):
                        line = await queue.get()
                except TimeoutError:
                    line = b"\n"
                if line is None:
                    return
                yield line
        finally:
            self._streams[host].discard(queue)
            if not self._streams[host]:
                del self._streams[host]
                with contextlib.suppress(Exception):
                    await self._db.write(lambda connection: store.heard(connection, [host], connected=False))

    def ask(self, host: str, message: LogsWanted) -> bool:
        """Say something to a host that need not outlive the moment; returns whether it is connected here."""
        return self._push(host, msgspec.json.encode(message) + b"\n")

    def stop(self) -> None:
        """Close all streams; agents come back to whichever server answers."""
        self._stopping = True
        for host in list(self._streams):
            self.close(host)

    def close(self, host: str) -> None:
        """Close the streams of one host."""
        for queue in tuple(self._streams.get(host, ())):
            while queue.full():
                queue.get_nowait()
            queue.put_nowait(None)

    def _push(self, host: str, line: bytes) -> bool:
        queues = self._streams.get(host)
        if not queues:
            return False
        for queue in tuple(queues):
            if queue.full():
                self.close(host)
            else:
                queue.put_nowait(line)
        return True

    async def _hand_on(self) -> None:
        rows = await self._db.read(lambda connection: store.told_since(connection, self._last))
        for host, revision, body in rows:
            self._last = max(self._last, revision)
            self._push(host, body.encode() + b"\n")
        if self._streams:
            for host in await self._db.read(_revoked):
                self.close(host)

    async def _give_signs(self) -> None:
        while True:
            await asyncio.sleep(SIGN)
            names = list(self._streams)
            if names:
                await self._db.write(lambda connection, here=names: _heard(connection, here))  # type: ignore[misc]


def _heard(connection: Connection, names: list[str]) -> None:
    for start in range(0, len(names), 500):
        store.heard(connection, names[start : start + 500])


def _last_revision(connection: Connection) -> int:
    return connection.execute(sa.select(sa.func.max(store.told_table.c.revision))).scalar() or 0


def _revoked(connection: Connection) -> Iterable[str]:
    return list(connection.execute(sa.select(store.host_table.c.name).where(store.host_table.c.revoked)).scalars())
