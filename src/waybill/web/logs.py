"""Log lines on their way from hosts to those who watch, in memory: nothing of them is kept.

A watch waits under one id for each host that was asked. The agents' port pushes what a host sends; a watcher that
does not keep up loses the oldest lines and is told how many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress

from waybill.wire.api import LogLine

ROOM = 5000
"""Lines that wait for one watcher at most."""
LINE_LIMIT = 16 * 1024


class Watch:
    """One watcher's lines; iterate over it, and close it."""

    def __init__(self, hub: LogHub, asked: Mapping[str, str]) -> None:
        self._hub = hub
        self._asked = dict(asked)
        self._silent = set(asked)
        self._open = set(asked)
        self._lines: deque[LogLine] = deque()
        self._dropped = 0
        self._bell = asyncio.Event()

    def add(self, identity: str, lines: Sequence[str], *, end: bool) -> None:
        """Take lines of one host."""
        host = self._asked[identity]
        self._silent.discard(identity)
        for line in lines:
            if len(self._lines) == ROOM:
                self._lines.popleft()
                self._dropped += 1
            self._lines.append(LogLine(host=host, line=line[:LINE_LIMIT]))
        if end:
            self._open.discard(identity)
        self._bell.set()

    async def lines(self, answer_within: float, end_after: float) -> AsyncIterator[LogLine | None]:
        """Lines as they come, until every host has ended; None after a while of silence.

        Args:
            answer_within: Seconds that a host has for its first word, or it is given up with a note.
            end_after: Seconds after which the watch ends by itself.
        """
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while True:
            while self._lines:
                if self._dropped:
                    note = f"{self._dropped} lines were left out: they came faster than they were read"
                    self._dropped = 0
                    yield LogLine(host="", note=note)
                yield self._lines.popleft()
            if not self._open or loop.time() - begun > end_after:
                return
            waited = loop.time() - begun
            if self._silent and waited >= answer_within:
                for identity in self._silent:
                    note = f"did not answer in {answer_within:.0f} s"
                    yield LogLine(host=self._asked[identity], note=note)
                    self._open.discard(identity)
                self._silent.clear()
                continue
            pause = answer_within - waited if self._silent else min(10.0, max(end_after - waited, 0.05))
            self._bell.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._bell.wait()
            if not self._bell.is_set() and not self._silent:
                yield None

    def close(self) -> None:
        """Stop watching; what hosts still send is refused."""
        self._hub.forget(self._asked)


class LogHub:
    """All watches of this server, by the ids under which hosts were asked."""

    def __init__(self) -> None:
        self._watches: dict[str, tuple[str, Watch]] = {}

    def open(self, asked: Mapping[str, str]) -> Watch:
        """Watch under these ids; ``asked`` maps an id to the host that was asked under it."""
        watch = Watch(self, asked)
        self._watches |= {identity: (host, watch) for identity, host in asked.items()}
        return watch

    def push(self, identity: str, lines: Sequence[str], *, end: bool = False, host: str | None = None) -> bool:
        """Hand lines to whoever watches under this id.

        Returns:
            Whether anybody does; when not, or when another host than ``host`` was asked, the agent may stop sending.
        """
        found = self._watches.get(identity)
        if found is None or (host is not None and found[0] != host):
            return False
        found[1].add(identity, lines, end=end)
        return True

    def forget(self, identities: Mapping[str, str]) -> None:
        """Drop the watch under these ids."""
        for identity in identities:
            self._watches.pop(identity, None)
