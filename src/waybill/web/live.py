"""Live pages: one read of the database for each change, however many people watch.

Nobody is sent events; everybody is sent what the page now shows. A watcher that is slow or was away just gets the
newest state, and a thousand events in a second make five pushes at most. Frames are rendered in the reading thread,
once for each view and scope, and shared by all who look at it with the same rights.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Generic, TypeVar

import msgspec
from litestar.response.sse import ServerSentEventMessage

from waybill.core.errors import UnavailableError
from waybill.infra.db import Connection, Database
from waybill.infra.logs import log

Key = TypeVar("Key")

PAUSE = 0.2
"""Seconds between two pushes at least."""
REST = 4.0
"""How many times as long as a read took the next one waits, so that watching a large fleet leaves room for work."""
TICK = 3.0
"""Seconds after which the state is read again without an event: a host may have gone silent."""
PING = 15.0
"""Seconds between signs of life on a quiet stream."""
WATCHERS = 2000
"""Streams that one server holds open."""
_AGE = re.compile(r'(<span class="age">)[^<]*')


class Frame(msgspec.Struct, frozen=True):
    """What a view shows at one moment: element id → HTML."""

    fragments: dict[str, str]

    @property
    def digests(self) -> dict[str, str]:
        """Element id → digest of its HTML, whatever time has passed since."""
        return {
            name: hashlib.sha256(_AGE.sub(r"\1", html).encode()).hexdigest() for name, html in self.fragments.items()
        }

    @property
    def version(self) -> str:
        """Digest of all of it."""
        return _version(self.digests)


class Look(msgspec.Struct, Generic[Key], frozen=True, kw_only=True):
    """The result of one read.

    Attributes:
        at: The server's clock.
        valid: Ids of the tokens that are neither revoked nor expired.
        frames: What each watched view shows.
    """

    at: str
    valid: frozenset[str]
    frames: dict[Key, Frame]


class Live(Generic[Key]):
    """Everybody who watches.

    Args:
        db: The database.
        topics: Topics that ring when something shown may have changed.
        look: Reads and renders what these keys show; runs in a thread, in one read transaction.
        stopping: Set when the server begins to stop; streams end then, and browsers come back by themselves.
    """

    def __init__(
        self,
        db: Database,
        topics: Iterable[str],
        look: Callable[[Connection, frozenset[Key]], Look[Key]],
        stopping: asyncio.Event,
    ) -> None:
        self._db = db
        self._topics = list(topics)
        self._read = look
        self._watched: Counter[Key] = Counter()
        self._look: Look[Key] | None = None
        self._digests: dict[Key, dict[str, str]] = {}
        self._turn = asyncio.Event()
        self._bell = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = stopping
        self._ending: asyncio.Task[None] | None = None
        self.reads = 0

    async def watch(self, key: Key, token: str, until: float, known: str) -> AsyncIterator[ServerSentEventMessage]:
        """Messages for one watcher, until the session ends.

        Args:
            key: What is watched.
            token: Id of the watcher's token.
            until: When the session ends, seconds since 1970.
            known: Version that the watcher already shows.
        """
        if self._watched.total() >= WATCHERS:
            raise UnavailableError("too many people watch this server.", "Reload the page by hand.")
        self._watched[key] += 1
        self._start()
        try:
            shown: dict[str, str] = {}
            yield ServerSentEventMessage(data=None, retry=1000, comment="waybill")
            while not self._stopping.is_set():
                turn, look = self._turn, self._look
                if look is not None and key in look.frames:
                    if token not in look.valid or time.time() > until:
                        yield ServerSentEventMessage(event="bye", data="log in again")
                        return
                    digests = self._digests[key]
                    if not shown and _version(digests) == known:
                        shown = digests
                    changed = {
                        name: look.frames[key].fragments[name] for name in digests if digests[name] != shown.get(name)
                    }
                    shown = digests
                    if changed:
                        data = msgspec.json.encode({"now": look.at, "fragments": changed}).decode()
                        yield ServerSentEventMessage(event="fragments", id=_version(digests), data=data)
                        if turn.is_set():
                            continue
                else:
                    self._bell.set()
                try:
                    async with asyncio.timeout(PING):
                        await turn.wait()
                except TimeoutError:
                    yield ServerSentEventMessage(data=None, comment="quiet")
        finally:
            self._watched[key] -= 1
            self._watched += Counter()  # drops what nobody watches

    def _start(self) -> None:
        if self._topics:
            for topic in self._topics:
                self._db.listen(topic, self._bell.set)
            self._topics = []
            self._ending = asyncio.create_task(self._end(), name="live-end")
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="live")

    async def _end(self) -> None:
        await self._stopping.wait()
        self._turn.set()
        self._bell.set()

    async def _run(self) -> None:
        while self._watched and not self._stopping.is_set():
            self._bell.clear()
            keys = frozenset(self._watched)
            began = time.monotonic()
            try:
                look, digests = await self._db.read(lambda connection, keys=keys: self._take(connection, keys))  # type: ignore[misc]
            except Exception as error:  # noqa: BLE001 - a page that cannot be read now is read again, streams stay open
                log.warning("live page", reason=f"{type(error).__name__}: {error}")
                await asyncio.sleep(1.0)
                continue
            self.reads += 1
            self._look, self._digests = look, digests
            turn, self._turn = self._turn, asyncio.Event()
            turn.set()
            await asyncio.sleep(max(PAUSE, REST * (time.monotonic() - began)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK):
                    await self._bell.wait()
        self._look = None

    def _take(self, connection: Connection, keys: frozenset[Key]) -> tuple[Look[Key], dict[Key, dict[str, str]]]:
        look = self._read(connection, keys)
        return look, {key: frame.digests for key, frame in look.frames.items()}


def _version(digests: dict[str, str]) -> str:
    return hashlib.sha256("".join(f"{name}={digests[name]};" for name in digests).encode()).hexdigest()[:24]
