"""A host for tests: a repository with a small service, an enrolled agent, and the agent as a real process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from waybill.agent import enrol, runner
from waybill.agent.daemon import Daemon
from waybill.agent.placing import secrets_file
from waybill.agent.state import Home
from waybill.core import clock
from waybill.trust.manifest import Manifest

MAIN = "from waybill.cli.main import main; main()"
SERVER = """\
import http.server, os, socket, sys
VERSION = {version!r}
open(os.environ["STARTS"], "a").write(VERSION + "\\n") if os.environ.get("STARTS") else None
{breakage}
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = (VERSION + " " + os.environ.get("SECRET", "-") + " " + os.environ["WAYBILL_COMMIT"]).encode()
        self.send_response({status})
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a):
        print("asked", self.path, flush=True)
server = http.server.ThreadingHTTPServer(("", 0), Answer, bind_and_activate=False)
server.socket = socket.socket(fileno=3)
server.serve_forever()
"""


def git(*arguments, cwd):
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Repository:
    """A real git repository with a service in it."""

    def __init__(self, path: Path, port: int, starts: Path | None = None):
        self.path = path
        self.port = port
        self.starts = starts
        self.python = sys.executable
        path.mkdir(parents=True)
        git("init", "-q", "-b", "main", cwd=path)

    def version(self, version, *, status=200, breakage="", extra="", files=None, top="", variables=""):
        (self.path / "app.py").write_text(SERVER.format(version=version, status=status, breakage=breakage))
        env = f"\n      env: {{STARTS: {self.starts}}}" if self.starts else ""
        (self.path / "waybill.yml").write_text(f"""\
service: hello
{top}environments:
  production:
    branches: [main]
    hosts: {{role: web}}
{variables}    run:
      driver: process
      command: [{self.python}, app.py]
      port: {self.port}
      drain: 1s{env}
    health: {{path: /, within: 3s}}
{extra}""")
        for name, content in (files or {}).items():
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return self.commit(version)

    def commit(self, message):
        git("add", "-A", cwd=self.path)
        git("commit", "-q", "--allow-empty", "-m", message, cwd=self.path)
        return git("rev-parse", "HEAD", cwd=self.path)


def manifest(commit, sequence, **other):
    values = {
        "service": "hello",
        "environment": "production",
        "repository": "team/hello",
        "commit": commit,
        "file": "waybill.yml",
        "sequence": sequence,
        "issued": clock.stamp(),
    } | other
    return Manifest(**values)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(port):
    """What the service answers, or an empty text."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) as answer:
        return answer.read().decode()
    return ""


async def asked(port):
    return await asyncio.to_thread(ask, port)


async def eventually(condition, seconds=15.0):
    async with asyncio.timeout(seconds):
        while not (found := await condition() if asyncio.iscoroutinefunction(condition) else condition()):
            await asyncio.sleep(0.02)
        return found


class InProcess:
    """A host whose agent runs in the test's own event loop; its services and keepers are real processes."""

    def __init__(self, root: Path):
        self.home = Home(root / "state")
        self._daemon: Daemon | None = None
        self._task: asyncio.Task | None = None

    async def enroll(self, server, *allow):
        patterns = tuple(allow or ("hello/*",))
        await asyncio.to_thread(
            enrol.enrol, self.home, server.token(), name="web-1", allow=patterns, force=False, accounts=False
        )

    async def start(self):
        self._daemon = Daemon(self.home, runner.perform, longest=0.3)
        self._task = asyncio.create_task(self._daemon.run())

    def poke(self):
        self._daemon.poke()

    @property
    def link(self):
        return self._daemon.link

    async def stop(self):
        if self._daemon:
            self._daemon.stop()
            await self._task
            self._daemon = None

    async def close(self):
        await self.stop()
        end_services(self.home)


def end_services(home: Home):
    """End every keeper and service that lives in an agent's folder."""
    marker = str(home.root).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                here = bytes((entry / "cwd").readlink())
                if marker in command or here.startswith(marker):
                    os.kill(int(entry.name), signal.SIGKILL)
    with contextlib.suppress(OSError):
        shutil.rmtree(secrets_file(home, home.service("x", "y"), "z").parent)


class Host:
    """A host with its agent as a real process."""

    def __init__(self, root: Path):
        self.root = root
        self.home = Home(root / "state")
        self.process: asyncio.subprocess.Process | None = None
        self.log = root / "agent.log"
        root.mkdir(parents=True, exist_ok=True)
        (root / "run").mkdir(exist_ok=True)

    async def waybill(self, *arguments, env=None):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            MAIN,
            *arguments,
            "--state",
            str(self.home.root),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | (env or {}),
        )
        output, errors = await process.communicate()
        return process.returncode, output.decode(), errors.decode()

    async def enroll(self, server, *allow):
        patterns = [part for pattern in allow or ("hello/*",) for part in ("--allow", pattern)]
        status, output, errors = await self.waybill(
            "agent", "enroll", server.token(), "--name", "web-1", "--no-accounts", *patterns
        )
        assert status == 0, errors
        return output

    async def start(self, env=None):
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                MAIN,
                "agent",
                "run",
                "--state",
                str(self.home.root),
                stdout=log,
                stderr=log,
                env=os.environ | (env or {}),
            )

    async def kill(self):
        if self.process and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()

    async def stop(self):
        if self.process and self.process.returncode is None:
            self.process.terminate()
            await self.process.wait()

    async def close(self):
        """End the agent and every keeper that lives in its folder."""
        await self.kill()
        end_services(self.home)
