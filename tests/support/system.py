"""The whole of Waybill on this machine: a real server, real agents on addresses of their own, a repository, users.

Every part is a process that a test may kill and start again on the same ports and folders. Only waits are shorter than
in production: how long an agent pauses before it connects again, how often the server sweeps, and where a test says so
how long the server waits for a host (``PATIENCE``) and takes its silence (``DEAD_AFTER``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import sqlalchemy as sa
from demo.load import Load, Tally

from support.agents import end_services
from support.repos import Repo
from waybill.agent import enrol
from waybill.agent.state import Folder, Home

SERVICE = Path(__file__).with_name("hello.py")
COMMAND = "from waybill.cli.main import main; main()"
SERVE = (
    """\
import os
from waybill.deploy import rules
from waybill.web import client_certificate
for module, name in ((rules, "PATIENCE"), (client_certificate, "DEAD_AFTER")):
    setattr(module, name, int(os.environ.pop(name, getattr(module, name))))
"""
    + COMMAND
)
AGENT = Path(__file__).with_name("agent_process.py")
PORT = 8480
KEY = "hello/production"
FAULT = 60.0
"""Seconds within which a system is well again after any fault here."""


class Program:
    """A process that may be killed, stopped and started again."""

    def __init__(self, name: str, argv: list[str], log: Path, environment: dict[str, str]) -> None:
        self.name, self.argv, self.log, self.environment = name, argv, log, environment
        self.process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def start(self, **environment: str) -> None:
        assert self.process is None or self.process.returncode is not None, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.argv, env=self.environment | environment, stdin=asyncio.subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip

    async def kill(self) -> None:
        await self.end(signal.SIGKILL)

    async def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the status."""
        if self.process is None:
            return 0
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(FAULT):
            return await self.process.wait()

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Agent(Program):
    """An enrolled host of this machine, on an address of its own."""

    def __init__(self, name: str, address: str, folder: Path, environment: dict[str, str]) -> None:
        self.home = Home(folder / name)
        self.address = address
        argv = [sys.executable, str(AGENT), "agent", "run", "--state", str(self.home.root)]
        super().__init__(name, argv, folder / f"{name}.log", environment)

    @property
    def folder(self) -> Folder:
        return self.home.service("hello", "production")

    def keeper(self) -> dict[str, Any]:
        """What the keeper of the service has on disk."""
        found: dict[str, Any] = json.loads((self.folder.path / "keeper/state.json").read_text())
        return found

    def live_version(self) -> dict[str, Any]:
        """The keeper's record of the process that serves."""
        return next(one for one in self.keeper()["versions"] if one["phase"] == "live")

    def set_address(self) -> None:
        file = self.home.root / "agent.toml"
        file.write_text(file.read_text().replace('address = ""', f'address = "{self.address}"'))


class System:
    """A server, hosts, a repository with its hook, and what a user sees of them.

    Args:
        folder: Where all of it stands.
        database: Address of an empty PostgreSQL database; SQLite in the data folder when not given.
        settings: Variables of the server's process.
    """

    def __init__(self, folder: Path, database: str = "", **settings: str) -> None:
        self.folder, self.data = folder, folder / "server"
        self.net = _free_net()
        self.url = f"http://{self.net}.1:8470"
        self.token = ""
        self.agents: dict[str, Agent] = {}
        self.repo = Repo(folder)
        self.starts_file = folder / "starts"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("WAYBILL_", "GIT_"))},
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder / "config"),
        }
        self.database = database
        words = ["serve", "--data", str(self.data), "--listen", f"{self.net}.1", "--agents-listen", f"{self.net}.1"]
        words += ["--database", database] if database else []
        self.server = Program(
            "server", [sys.executable, "-c", SERVE, *words], folder / "server.log",
            self.environment | {"WAYBILL_SWEEP": "1"} | settings,
        )  # fmt: skip
        self.client = httpx2.AsyncClient(base_url=self.url, timeout=20, trust_env=False)
        self.hook: dict[str, str] = {}
        self.running: list[Load] = []

    # -- starting, killing --

    async def start_server(self) -> None:
        """Start the server and wait until it is ready."""
        await self.server.start()
        await self.until(self.ready, "the server does not answer")
        if not self.token:
            self.token = self.first_token()

    def first_token(self) -> str:
        """The newest admin token that the server printed."""
        return [word for word in self.server.said().split() if word.startswith("wbt_")][-1]

    async def ready(self) -> bool:
        assert self.server.process is not None and self.server.process.returncode is None, self.server.said()[-3000:]
        with contextlib.suppress(httpx2.TransportError):
            return (await self.client.get("/readyz")).status_code == 200
        return False

    async def restart_server(self) -> None:
        """SIGKILL, and a new one."""
        await self.server.kill()
        await self.start_server()

    async def enrol(self, *names: str, force: bool = False, start: bool = True) -> None:
        """Enrol hosts, known ones again where ``force`` says so, and start their agents."""
        wanted = {"labels": {"role": "web"}, "uses": len(names)}
        token = (await self.call("POST", "/api/enrolments", wanted))["token"]
        for name in names:
            if name not in self.agents:
                address = f"{self.net}.{len(self.agents) + 2}"
                self.agents[name] = Agent(name, address, self.folder, self.environment)
            agent = self.agents[name]
            await asyncio.to_thread(
                enrol.enrol, agent.home, token, name=name, allow=(KEY,), force=force, accounts=False
            )
            agent.set_address()
            if start:
                await agent.start()

    async def connected(self, *names: str) -> None:
        """Wait until hosts are connected."""

        async def all_here() -> bool:
            here = {host["name"] for host in await self.call("GET", "/api/hosts") if host["connected"]}
            return set(names or self.agents) <= here

        await self.until(all_here, "hosts are not connected")

    async def prepare(self) -> None:
        """The repository, its grant and its hook, as an operator sets them up."""
        await self.call("POST", "/api/repositories", {"name": "team/hello", "url": str(self.repo.bare)})
        grant = {"repository": "team/hello", "branches": ["main"], "hosts": {"role": "web"}}
        await self.call("PUT", f"/api/grants/{KEY}", grant)
        self.hook = await self.call("POST", "/api/hooks", {"forge": "generic", "repository": "team/hello"})
        secret = self.folder / "hook.secret"
        secret.write_text(self.hook["secret"])
        secret.chmod(0o600)
        words = ["hook", "install", str(self.repo.bare), "--server", self.hook["url"], "--name", "team/hello"]
        await self.waybill(*words, "--secret-file", str(secret))

    async def close(self) -> None:
        """End all that was started here: agents, keepers, services, the server."""
        for load in self.running:
            with contextlib.suppress(Exception):
                await load.stop()
        await self.client.aclose()
        for program in (*self.agents.values(), self.server):
            await program.kill()
        for agent in self.agents.values():
            end_services(agent.home)

    # -- what people do --

    async def call(self, method: str, path: str, body: Any = None, *, status: int | None = None) -> Any:
        """The API's answer; it has to be good, or have this status."""
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = await self.client.request(method, path, json=body, headers=headers)
        if status is not None:
            assert answer.status_code == status, answer.text
        else:
            assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    async def waybill(self, *words: str, cwd: Path | None = None, ok: bool = True) -> str:
        """What a ``waybill`` command prints."""
        login = {"WAYBILL_SERVER": self.url, "WAYBILL_TOKEN": self.token}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", COMMAND, *words, cwd=cwd, env=self.environment | login,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = (text.decode() for text in await process.communicate())
        assert not ok or process.returncode == 0, out + err
        return out + err if not ok else out

    def commit(self, version: str, *, variables: str = "", run: str = "", **more: str) -> str:
        """Commit a version of the service; ``more`` are its variables."""
        env = {"VERSION": version, "STARTS": str(self.starts_file), **more}
        text = f"""\
service: hello
environments:
  production:
    branches: [main]
    hosts: {{role: web}}
{f"    variables: {variables}" if variables else "    # no locked variables"}
    run:
      driver: process
      command: [{sys.executable}, -S, hello.py]
      port: {PORT}
      drain: 2s
      env: {json.dumps(env)}
{run}
    health: {{path: /, within: 5s}}
"""
        return self.repo.commit({"waybill.yml": text, "hello.py": SERVICE.read_text()}, f"version {version}")

    async def push(self, *, force: bool = False) -> None:
        """``git push``; its real hook tells the server."""
        await asyncio.to_thread(self.repo.push, force=force)

    async def deploy(self, version: str, **more: str) -> str:
        """Commit and push a version, and wait until it serves everywhere; returns the commit."""
        commit = self.commit(version, **more)
        await self.push()
        await self.serves(version)
        await self.ended(commit)
        return commit

    # -- what people see --

    async def until(self, seen: Callable[[], Any], message: str, seconds: float = FAULT) -> Any:
        """Wait for something to come true."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    found = seen()
                    found = await found if asyncio.iscoroutine(found) else found
                    if found:
                        return found
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{message}\n{self.logs()}\n{self.state()}") from None

    async def serves(self, version: str, names: Iterable[str] = (), seconds: float = FAULT) -> None:
        """Wait until hosts answer with this version."""
        for name in names or self.agents:
            agent = self.agents[name]
            await self.until(lambda at=agent: self._is(at, version), f"{name} does not serve {version}", seconds)

    async def _is(self, agent: Agent, version: str) -> bool:
        return (await self.ask(agent)).get("version") == version

    async def ask(self, agent: Agent) -> dict[str, Any]:
        """What a host answers to a user; empty when it does not."""
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            async with asyncio.timeout(3):
                reader, writer = await asyncio.open_connection(agent.address, PORT)
                try:
                    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    answer = await reader.read()
                finally:
                    writer.close()
                found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2] or b"{}")
                return found
        return {}

    async def rollouts(self, commit: str = "") -> list[dict[str, Any]]:
        """Rollouts as the API lists them, newest first."""
        found = await self.call("GET", "/api/rollouts")
        return [one for one in found if commit in ("", one["commit"])]

    async def ended(self, commit: str, state: str = "done", seconds: float = FAULT) -> dict[str, Any]:
        """The one rollout of a commit, once it has ended in this state."""

        async def look() -> dict[str, Any]:
            with contextlib.suppress(httpx2.TransportError):
                return next((one for one in await self.rollouts(commit) if one["finished"]), {})
            return {}

        found: dict[str, Any] = await self.until(look, f"the rollout of {commit[:12]} does not end", seconds)
        assert found["state"] == state, found
        return found

    async def events(self, kind: str = "") -> list[dict[str, Any]]:
        """What the timeline says, newest first."""
        found = await self.call("GET", "/api/events?limit=500")
        return [one for one in found if kind in ("", one["kind"])]

    async def host(self, name: str) -> dict[str, Any]:
        """What ``waybill status`` shows of the service on one host."""
        status = await self.call("GET", "/api/status")
        rows = [host for one in status["environments"] for host in one["hosts"] if host["host"] == name]
        return rows[0] if rows else {}

    def users(self, *versions: str, names: Iterable[str] = (), clients: int = 4, pause: float = 0.03) -> list[Load]:
        """Users who keep asking hosts, on new and on kept connections; only these versions may answer."""
        allowed = set(versions)
        made = [
            Load(PORT, host=self.agents[name].address, fresh=clients // 2, kept=clients - clients // 2,
                 allowed=(lambda version: version in allowed) if allowed else (lambda _: True), pause=pause)
            for name in names or self.agents
        ]  # fmt: skip
        self.running += made
        return made

    async def nobody_lost(self, loads: list[Load]) -> Tally:
        """Let the users go; none of their requests may have been lost."""
        total = Tally()
        for load in loads:
            tally = await load.stop()
            self.running.remove(load)
            total.sent += tally.sent
            total.lost += tally.lost
            total.versions += tally.versions
            total.details += tally.details
        assert not total.lost, f"{total}\n{total.details[:10]}\n{self.logs()}"
        assert sum(total.sent.values()) > 0
        return total

    def starts(self) -> Counter[tuple[str, str]]:
        """(host, version) → how often it was started."""
        if not self.starts_file.exists():
            return Counter()
        rows = [line.split(" ", 2) for line in self.starts_file.read_text().splitlines()]
        return Counter((Path(cwd).relative_to(self.folder).parts[0], version) for version, _, cwd in rows)

    def started_once(self, *versions: str) -> None:
        """Each host has started each of these versions exactly once."""
        found = self.starts()
        expected = {(name, version): 1 for name in self.agents for version in versions}
        assert {key: found[key] for key in expected} == expected, found

    def state(self) -> str:
        """What the database holds of work and rollouts, for whoever reads a failure."""
        asked = ("SELECT * FROM work", 'SELECT state, reason, "commit", sequence FROM rollout ORDER BY id DESC LIMIT 5',
                 "SELECT * FROM rollout_host ORDER BY rollout DESC LIMIT 4")  # fmt: skip
        with contextlib.suppress(sa.exc.SQLAlchemyError):
            return "\n".join(str(row) for sql in asked for row in self.query(sql))
        return ""

    def logs(self) -> str:
        programs = (self.server, *self.agents.values())
        return "\n".join(f"--- {one.name}\n{_telling(one.said())}" for one in programs)

    def query(self, sql: str) -> list[Any]:
        """Rows of the server's own database, read beside it."""
        if self.database:
            url = sa.make_url(self.database).set(drivername="postgresql+psycopg")
        else:
            url = sa.make_url(f"sqlite:///{self.data}/waybill.sqlite")
        if not hasattr(self, "_engine"):
            self._engine = sa.create_engine(url, poolclass=sa.NullPool)
        with self._engine.connect() as connection:
            return list(connection.execute(sa.text(sql)).all())


@asynccontextmanager
async def system(folder: Path, *hosts: str, database: str = "", **settings: str) -> AsyncIterator[System]:
    """A system that runs: server, hosts, repository; ended with all its processes."""
    made = System(folder, database, **settings)
    try:
        await made.start_server()
        await made.enrol(*hosts)
        await made.prepare()
        await made.connected()
        yield made
    finally:
        await made.close()


def _telling(log: str) -> str:
    return "\n".join([line for line in log.splitlines() if "connection attempts failed" not in line][-25:])


def _free_net() -> str:
    """The first three parts of addresses that nobody uses."""
    while True:
        net = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(256)}"
        with contextlib.suppress(OSError), socket.create_server((f"{net}.1", 8470)):
            return net
