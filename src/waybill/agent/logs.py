"""The log of a service on this host, wherever its driver keeps it: the keeper's file, or the journal."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from waybill.agent.programs import end
from waybill.agent.state import Folder
from waybill.core.errors import NotFoundError

BLOCK = 256 * 1024
LINE = 16 * 1024
POLL = 0.2


async def tail(folder: Folder, lines: int, seconds: float | None) -> AsyncIterator[str]:
    """The last lines, then new ones as they come.

    Args:
        folder: Of the service.
        lines: How many of the last ones.
        seconds: How long to go on; 0 not at all, None for ever.

    Raises:
        NotFoundError: Nothing of it ever ran here.
    """
    live, attempt = folder.live(), folder.attempt()
    placed = live.placed if live else attempt.placed if attempt else None
    driver = placed.driver if placed else ""
    source = _journal(folder, lines, seconds) if driver == "systemd" else _file(folder, lines, seconds)
    loop = asyncio.get_running_loop()
    until = None if seconds is None else loop.time() + seconds
    async with contextlib.aclosing(source):
        try:
            async with asyncio.timeout_at(until if seconds else None):
                async for line in source:
                    yield line[:LINE]
        except TimeoutError:
            return


async def _file(folder: Folder, lines: int, seconds: float | None) -> AsyncGenerator[str, None]:
    path = folder.path / "keeper/service.log"
    if not path.exists():
        raise NotFoundError(f"nothing of {folder.key} ever ran here.", "`waybill agent status` says where it stands.")
    position, inode = 0, 0
    with path.open("rb") as file:
        about = os.fstat(file.fileno())
        file.seek(max(0, about.st_size - BLOCK))
        last = file.read().splitlines()[-lines:] if lines else []
        position, inode = file.tell(), about.st_ino
    for line in last:
        yield line.decode(errors="replace")
    while seconds is None or seconds:
        await asyncio.sleep(POLL)
        position, inode, fresh = _fresh(path, position, inode)
        for line in fresh:
            yield line.decode(errors="replace")


def _fresh(path: Path, position: int, inode: int) -> tuple[int, int, list[bytes]]:
    """Whole lines that came after a position; from the start of the next file when it was turned over."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return position, inode, []
    with file:
        about = os.fstat(file.fileno())
        if about.st_ino != inode or about.st_size < position:
            position = 0
        file.seek(position)
        whole, newline, _ = file.read(BLOCK).rpartition(b"\n")
        return position + len(whole) + len(newline), about.st_ino, whole.split(b"\n") if newline else []


async def _journal(folder: Folder, lines: int, seconds: float | None) -> AsyncGenerator[str, None]:
    # A release begins with its date, which keeps ``production`` and ``production-2`` apart.
    pattern = f"waybill-{folder.service}.{folder.environment}-{'[0-9]' * 8}T*"
    follow = ["--follow"] if seconds is None or seconds else []
    process = await asyncio.create_subprocess_exec(
        "journalctl", "--no-pager", "--quiet", "--output=short-iso-precise", f"--lines={lines}", *follow,
        f"--unit={pattern}", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL, start_new_session=True, limit=1 << 20,
    )  # fmt: skip
    try:
        while process.stdout and (line := await process.stdout.readline()):
            yield line.decode(errors="replace").rstrip("\n")
        await process.wait()
    finally:
        if process.returncode is None:
            end(process)
            await process.wait()
