"""A load generator that counts what users would notice.

Some clients open a connection for each request, others keep theirs. A request is lost when it is refused, reset,
answered with 5xx or by a version that must not serve, or takes over a second. A kept connection that the server closes
*between* two requests, having announced it, is reopened and nothing is lost.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

SLOW = 1.0


@dataclass
class Tally:
    """Sent and lost, by kind of connection and kind of loss; versions by number of answers."""

    sent: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    details: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        sent = ", ".join(f"{count} {kind}" for kind, count in sorted(self.sent.items()))
        lost = ", ".join(f"{count} {kind}" for kind, count in sorted(self.lost.items())) or "0"
        return f"sent {sent}; lost {lost}; slowest {self.slowest * 1000:.0f} ms; {dict(self.versions)}"


class Load:
    """Clients that run until ``stop``.

    Args:
        port: Where.
        fresh: Clients that open a connection for each request.
        kept: Clients that keep theirs.
        allowed: Says whether a version may answer now.
        pause: Seconds between two requests of one client.
    """

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        fresh: int = 8,
        kept: int = 8,
        allowed: Callable[[str], bool] = lambda _version: True,
        pause: float = 0.002,
    ) -> None:
        self.tally = Tally()
        self._address = (host, port)
        self._allowed = allowed
        self._pause = pause
        self._running = True
        self._tasks = [asyncio.create_task(self._client("new", keep=False)) for _ in range(fresh)]
        self._tasks += [asyncio.create_task(self._client("kept", keep=True)) for _ in range(kept)]

    async def stop(self) -> Tally:
        """Let the requests under way finish, and return the tally."""
        self._running = False
        await asyncio.gather(*self._tasks)
        return self.tally

    async def _client(self, kind: str, *, keep: bool) -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while self._running:
            began = time.monotonic()
            self.tally.sent[kind] += 1
            try:
                async with asyncio.timeout(10):
                    connection = connection or await asyncio.open_connection(*self._address)
                    status, version, stays = await _request(*connection, keep=keep)
                self._judge(kind, status, version, time.monotonic() - began)
            except ConnectionRefusedError:
                self._lose(kind, "refused")
                connection = None
                await asyncio.sleep(self._pause)  # or a port that is closed for a moment would be asked without pause
                continue
            except (OSError, EOFError, ValueError) as error:
                self._lose(kind, "over 1 s" if isinstance(error, TimeoutError) else "reset", repr(error))
                stays = False
            if connection and not stays:
                connection[1].close()
                connection = None
            await asyncio.sleep(self._pause)
        if connection:
            connection[1].close()

    def _judge(self, kind: str, status: int, version: str, took: float) -> None:
        self.tally.slowest = max(self.tally.slowest, took)
        self.tally.versions[version] += 1
        if status >= 500:
            self._lose(kind, "5xx")
        elif not self._allowed(version):
            self._lose(kind, "wrong version", version)
        elif took > SLOW:
            self._lose(kind, "over 1 s", f"{took:.2f} s")

    def _lose(self, kind: str, why: str, detail: str = "") -> None:
        self.tally.lost[f"{kind} {why}"] += 1
        self.tally.details.append(f"{time.time():.3f} {kind} {why} {detail}")


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, keep: bool) -> tuple[int, str, bool]:
    end = "keep-alive" if keep else "close"
    writer.write(f"GET / HTTP/1.1\r\nHost: test\r\nConnection: {end}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
    body = await reader.readexactly(int(headers["content-length"]))
    status = int(lines[0].split()[1])
    version = str(json.loads(body)["version"]) if status < 500 else ""
    return status, version, keep and headers.get("connection") != "close"
