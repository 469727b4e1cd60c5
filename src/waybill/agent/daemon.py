"""``waybill agent run``: the services of this host, the link to the server, and what holds them together.

Restarting the agent never restarts a service: services live under a keeper or systemd, and what the agent knows is on
disk. SIGHUP says that a person changed something on disk; SIGTERM ends the agent and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Coroutine
from typing import Any

from waybill.agent import rules
from waybill.agent.building import Builder
from waybill.agent.converge import Perform, Service
from waybill.agent.link import LONGEST_WAIT, Link
from waybill.agent.logs import tail
from waybill.agent.placing import Placer
from waybill.agent.state import Config, Folder, Home
from waybill.core import clock
from waybill.core.errors import WaybillError
from waybill.wire.agent import Abandon, BuildOrder, Desired, Facts, FromServer, LogLines, LogsWanted, Remove, Report

log = logging.getLogger("waybill.agent")
HEALTH_EVERY = 20.0
LOG_LINES = 1000
LOG_SECONDS = 3600


class Daemon:
    """The running agent.

    Args:
        home: Its folder, enrolled.
        perform: Performs a driver's command.
        longest: Seconds that it waits at most before it connects again.
    """

    def __init__(self, home: Home, perform: Perform, longest: float = LONGEST_WAIT) -> None:
        self._home = home
        self._perform = perform
        self._config: Config = home.config()
        self.link = Link(home, self._config, self._hear, self._reports, self._facts, longest)
        self._placer = Placer(home, self.link)
        self._builder = Builder(home, self._placer, perform, self.link)
        self._services: dict[str, Service] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._error: BaseException | None = None

    async def run(self) -> None:
        """Run until ``stop`` is called."""
        for folder in self._home.services():
            self._service(folder)
        self._spawn(self.link.run())
        self._spawn(self._builder.run())
        self._spawn(self._check_health())
        self._spawn(_watchdog())
        notify("READY=1")
        await self._stop.wait()
        notify("STOPPING=1")
        await self.link.flush(1.0)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._error:
            raise self._error

    def stop(self) -> None:
        """End the agent, and nothing else."""
        self._stop.set()

    def poke(self) -> None:
        """Look at what is on disk: a person has changed something."""
        for folder in self._home.services():
            self._service(folder).poke()

    def _service(self, folder: Folder) -> Service:
        if folder.key not in self._services:
            service = Service(self._home, folder, self._placer, self._perform, self.link.report)
            self._services[folder.key] = service
            self._spawn(service.run())
        return self._services[folder.key]

    def _hear(self, message: FromServer, server: str) -> None:
        match message:
            case Desired() | Abandon() | Remove():
                try:
                    folder = self._home.service(*rules.subject(message))
                    told = folder.told()
                    heard = rules.heed(told, message, server, self._config.allow, clock.stamp())
                except WaybillError as error:
                    log.warning("a message was refused: %s", error)
                    return
                if heard != told:
                    folder.store(heard)
                    self._service(folder).poke()
            case BuildOrder():
                try:
                    self._builder.accept(message)
                except WaybillError as error:
                    log.warning("a build order was refused: %s", error)
            case LogsWanted():
                self._spawn(self._send_logs(message))
            case _:
                pass

    def _reports(self) -> list[Report]:
        return [last for service in self._services.values() if (last := service.last())]

    def _facts(self) -> Facts:
        from waybill.agent.facts import facts

        return facts(self._home.root)

    async def _check_health(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_EVERY)
            for service in list(self._services.values()):
                await service.check_health()

    async def _send_logs(self, wanted: LogsWanted) -> None:
        """Send the log of a service to whoever watches, a few times a second at most."""
        try:
            folder = self._home.service(wanted.service, wanted.environment)
            waiting: asyncio.Queue[str] = asyncio.Queue(LOG_LINES)

            async def collect() -> None:
                async for line in tail(folder, min(wanted.lines, LOG_LINES), min(wanted.seconds, LOG_SECONDS)):
                    await waiting.put(line)

            collecting = asyncio.create_task(collect())
            try:
                while not collecting.done() or not waiting.empty():
                    await asyncio.wait({collecting}, timeout=0.1)
                    lines = [waiting.get_nowait() for _ in range(waiting.qsize())]
                    if lines:
                        await self.link.logs(wanted.id, LogLines(lines=lines))
                await collecting
            finally:
                collecting.cancel()
            await self.link.logs(wanted.id, LogLines(end=True))
        except WaybillError as error:
            with contextlib.suppress(WaybillError):
                await self.link.logs(wanted.id, LogLines(lines=[error.reason], end=True))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._error = self._error or error
            self._stop.set()


def notify(text: str) -> None:
    """Tell systemd, when it asked to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.send(text.encode())


async def _watchdog() -> None:
    microseconds = int(os.environ.get("WATCHDOG_USEC") or 0)
    while microseconds:
        notify("WATCHDOG=1")
        await asyncio.sleep(microseconds / 2_000_000)
