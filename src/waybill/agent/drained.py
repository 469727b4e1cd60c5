"""Performs ``Drained``: waits until a version has nobody left to answer.

The kernel counts a connection as established before the program has accepted it, so the accept queue is in the count.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from waybill.agent.sockets import CLOSE_WAIT, ESTABLISHED, PROC, SYN_RECEIVED, sockets

POLL = 0.1
"""Seconds between two looks."""


def connections(port: int, proc: Path = PROC) -> int:
    """How many connections to a port are open or being opened; a half closed one still awaits its answer."""
    return sum(socket.state in (ESTABLISHED, SYN_RECEIVED, CLOSE_WAIT) for socket in sockets(port, proc))


async def drained(port: int, within: float, proc: Path = PROC) -> int:
    """Wait until no connection to the port is left; returns how many there still are after ``within`` seconds."""
    deadline = time.monotonic() + within
    while (left := connections(port, proc)) and time.monotonic() < deadline:  # noqa: ASYNC110 - the kernel sends no event
        await asyncio.sleep(POLL)
    return left
