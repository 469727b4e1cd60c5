"""A service under a keeper, for tests: releases of ``hello``, the steps of the driver, and a look for leftovers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import waybill
from waybill.agent import keeper_client, keeper_process
from waybill.agent.runner import Result, perform
from waybill.drivers.model import Health, Release, Step
from waybill.drivers.process import DRIVER, Options

HELLO = Path(__file__).with_name("hello.py")
SOURCE = Path(waybill.__file__).parent.parent


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


class Host:
    """One service on this machine."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.mark = f"WAYBILL_TEST={uuid.uuid4().hex}"
        self.keeper = str(folder / "keeper")

    def release(self, version: str, **changes: Any) -> Release:
        variables = {"VERSION": version, **dict([self.mark.split("=")]), **changes.pop("variables", {})}
        given: dict[str, Any] = {
            "key": "hello/test",
            "id": f"20260101T000000Z-{version}",
            "sequence": 1,
            "commit": "c" * 40,
            "root": str(HELLO.parent),
            "state": str(self.folder),
            "command": (sys.executable, "-S", str(HELLO)),
            "environment": variables,
            "options": Options(),
            "port": self.port,
            "health": Health(path="/health", within=10, timeout=3),
            "drain": 5.0,
        }
        return Release(**{**given, **changes})

    async def step(self, step: Step, release: Release, previous: Release | None = None) -> Result:
        result = Result(ok=True)
        for command in DRIVER.plan(step, release, previous):
            result = await perform(command)
            if not result.ok:
                break
        return result

    async def do(self, release: Release, *steps: Step) -> None:
        for step in steps:
            result = await self.step(step, release)
            assert result.ok, (step, result)

    async def status(self) -> dict[str, Any]:
        return await keeper_client.ask(self.keeper, {"op": "status"})

    async def version(self, release: Release) -> dict[str, Any]:
        return next(v for v in (await self.status())["versions"] if v["id"] == release.id)

    def log(self) -> str:
        return (Path(self.keeper) / "service.log").read_text()

    def processes(self) -> list[int]:
        """All that this host has running: services by their environment, keepers by their folder."""
        found = []
        for path in Path("/proc").iterdir():
            if not path.name.isdecimal() or int(path.name) == os.getpid():
                continue
            try:
                mine = self.mark.encode() in (path / "environ").read_bytes()
                words = (path / "cmdline").read_bytes().split(b"\0")
                state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z" and (mine or self.keeper.encode() in words):
                found.append(int(path.name))
        return found

    async def kill_keeper(self) -> int:
        pid = int((await keeper_client.ask(self.keeper, {"op": "status"}, start=False))["pid"])
        os.kill(pid, signal.SIGKILL)
        await until(lambda: keeper_process.start_time(pid) is None)
        return pid

    async def dying_keeper(self, operation: str, count: int) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-s", "-P", str(Path(__file__).with_name("dying_keeper.py")),
            self.keeper, operation, str(count), env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE)},
        )  # fmt: skip
        limit = time.monotonic() + 10
        while True:
            try:
                answer = await keeper_client.ask(self.keeper, {"op": "status"}, 10, start=False)
            except waybill.core.errors.UnavailableError:
                assert time.monotonic() < limit and process.returncode is None
                await asyncio.sleep(0.01)
                continue
            assert answer["pid"] == process.pid
            return process

    async def clear(self) -> None:
        """End everything; nothing may be left."""
        stops = [{"op": "stop", "id": version["id"], "drain": 1} for version in (await self.status())["versions"]]
        await asyncio.gather(*(keeper_client.ask(self.keeper, stop, 20) for stop in stops))
        await until(lambda: len(self.processes()) <= 1, "a service is left")
        await self.kill_keeper()
        await until(lambda: not self.processes(), "a keeper is left")


async def until(condition: Any, message: str = "", seconds: float = 10.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, message or "waited too long"
        await asyncio.sleep(0.01)
