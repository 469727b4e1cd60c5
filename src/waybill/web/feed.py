"""Following what happens: events as they are recorded, and server-sent events as they leave.

A follower reads the table from where it stands and then waits for the bell that every recorded event rings, on any
server; so nothing is missed between the two, and a slow follower costs nobody else anything.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import msgspec
from litestar.response import Stream

from waybill.events import outbox
from waybill.events.model import Event
from waybill.infra.db import Database

T = TypeVar("T")
HEARTBEAT = 15.0
"""Seconds of silence after which a comment keeps a stream open."""
PAGE = 200


class Feed:
    """The bell of recorded events.

    Args:
        db: Where they are recorded.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._next = asyncio.Event()
        self._listening = False

    def ring(self) -> None:
        """Wake all who follow."""
        past, self._next = self._next, asyncio.Event()
        past.set()

    async def follow(
        self, since: int, stopping: asyncio.Event, keep: Callable[[Event], bool]
    ) -> AsyncIterator[Event | None]:
        """Events after position ``since`` that ``keep`` wants, for ever; None at least every ``HEARTBEAT`` seconds."""
        if not self._listening:
            self._listening = True
            self._db.listen(outbox.EVENTS, self.ring)
        position = since
        while not stopping.is_set():
            bell = self._next
            page = await self._db.read(functools.partial(outbox.events_since, seq=position, limit=PAGE))
            for event in page:
                position = event.seq
                if keep(event):
                    yield event
            if len(page) == PAGE:
                continue
            if not await _either(bell.wait(), stopping.wait(), HEARTBEAT):
                yield None


async def _either(one: Awaitable[object], other: Awaitable[object], seconds: float) -> bool:
    """Wait for whichever comes first; False when neither came in time."""
    tasks = [asyncio.ensure_future(one), asyncio.ensure_future(other)]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for task in tasks:
            task.cancel()


def sse(value: object, kind: str = "", identity: str = "") -> bytes:
    """One server-sent event with a value as JSON (WHATWG HTML, section 9.2)."""
    head = (f"id: {identity}\n" if identity else "") + (f"event: {kind}\n" if kind else "")
    return head.encode() + b"data: " + msgspec.json.encode(value) + b"\n\n"


SILENCE = b": still here\n\n"


def stream(chunks: AsyncIterator[bytes]) -> Stream:
    """An answer of server-sent events that no proxy holds back."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return Stream(chunks, media_type="text/event-stream", headers=headers)
