"""``waybill agent run``: the services of this host, the link to the server, and what holds them together.

Restarting the agent never restarts a service: services live under a keeper or systemd, and what the agent knows is on
disk. SIGHUP says that a person changed something on disk; SIGTERM ends the agent and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket

from waybill.agent import rules
from waybill.agent.converge import Perform, Service
from waybill.agent.link import LONGEST_WAIT, Link
from waybill.agent.placing import Placer
from waybill.agent.state import Config, Folder, Home
from waybill.core import clock
from waybill.core.errors import WaybillError
from waybill.wire.agent import Abandon, BuildOrder, Desired, Facts, FromServer, LogsWanted, Remove, Report

log = logging.getLogger("waybill.agent")
HEALTH_EVERY = 20.0


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
        self._services: dict[str, Service] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        stop = asyncio.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._poke)
        for folder in self._home.services():
            self._service(folder)
        self._spawn(self.link.run())
        self._spawn(self._check_health())
        self._spawn(_watchdog())
        notify("READY=1")
        waiter = asyncio.ensure_future(stop.wait())
        await asyncio.wait({waiter, self._failed}, return_when=asyncio.FIRST_COMPLETED)
        notify("STOPPING=1")
        waiter.cancel()
        await self.link.flush(1.0)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._failed.done():
            self._failed.result()

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
                pass
            case LogsWanted():
                pass
            case _:
                pass

    def _reports(self) -> list[Report]:
        return [last for service in self._services.values() if (last := service.last())]

    def _facts(self) -> Facts:
        from waybill.agent.facts import facts

        return facts(self._home.root)

    def _poke(self) -> None:
        for folder in self._home.services():
            self._service(folder).poke()

    async def _check_health(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_EVERY)
            for service in list(self._services.values()):
                await service.check_health()

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and self._failed and not self._failed.done():
            self._failed.set_exception(error)


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
