"""Ways into the agent: run it, boot what was live, settle one service without it."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import IO

from waybill.agent import runner
from waybill.agent.converge import Service
from waybill.agent.daemon import Daemon
from waybill.agent.placing import Placer
from waybill.agent.state import Folder, Home
from waybill.core.clock import stamp
from waybill.core.errors import UnavailableError


class _Lines(logging.Formatter):
    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        if self._as_json:
            return json.dumps({"at": stamp(), "level": record.levelname.lower(), "message": text})
        return f"{stamp()} {record.levelname.lower()} {text}"


def run(home: Home, *, as_json: bool = False) -> None:
    """Run the agent in the foreground.

    Raises:
        ConflictError: Another one runs on the folder.
        NotFoundError: The folder is not enrolled.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(as_json=as_json))
    logging.getLogger("waybill").addHandler(handler)
    logging.getLogger("waybill").setLevel(logging.INFO)
    home.config()
    with home.locked():
        asyncio.run(_run(Daemon(home, runner.perform)))


async def _run(daemon: Daemon) -> None:
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, daemon.stop)
    loop.add_signal_handler(signal.SIGHUP, daemon.poke)
    await daemon.run()


def boot(home: Home) -> dict[str, str]:
    """Bring every live release up again; what did not come up, with the reason."""

    async def each() -> dict[str, str]:
        services = [_alone(home, folder) for folder in home.services()]
        await asyncio.gather(*(service.resume() for service in services))
        return {service.folder.key: service.trouble for service in services if service.trouble}

    return asyncio.run(each())


def settle(home: Home, folder: Folder) -> None:
    """Bring one service to where it should be, without the server and without a running agent."""
    asyncio.run(_alone(home, folder).settle())


class _Nowhere:
    """Stands where the server would: nothing can be fetched."""

    async def pack(self, repository: str, commit: str, file: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        raise UnavailableError(f"commit {commit[:12]} of {repository} ({file}) is not on this host.")

    async def build(self, digest: str, target: IO[bytes]) -> None:
        raise UnavailableError(f"the build {digest[:19]} is not on this host ({target.name}).")


def _alone(home: Home, folder: Folder) -> Service:
    return Service(home, folder, Placer(home, _Nowhere()), runner.perform, lambda _: None)
