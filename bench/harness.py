"""What every benchmark needs: programs that are ended, a server with its repository and hosts, and tables."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

WAYBILL = Path(sys.executable).with_name("waybill")
SAMPLE = Path(__file__).parent.parent / "demo" / "hello" / "hello.py"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "waybill-bench"
"""Where peers are installed, each in an environment of its own."""
FOREIGN = ("WAYBILL_", "GIT_", "SOPS_", "XDG_", "ANSIBLE_", "PYTHON")


class BenchError(Exception):
    """Something did not happen that a benchmark stands on."""


class Programs:
    """A folder of its own, and the programs that run in it until the end of the ``with`` block."""

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="waybill-bench-", dir=os.environ.get("BENCH_DIR")))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)},
            "HOME": str(self.folder / "home"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "Bench",
            "GIT_AUTHOR_EMAIL": "bench@example.org",
            "GIT_COMMITTER_NAME": "Bench",
            "GIT_COMMITTER_EMAIL": "bench@example.org",
            "PYTHONDONTWRITEBYTECODE": "",
        }
        (self.folder / "home").mkdir()
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []
        return self

    def __exit__(self, *_: object) -> None:
        for _, process in reversed(self._running):
            if process.poll() is None:
                process.terminate()
        for _, process in reversed(self._running):
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *argv: object, cwd: Path | None = None, stdin: str = "") -> str:
        """Run a command to its end; what it printed."""
        words = [str(WAYBILL) if word == "waybill" else str(word) for word in argv]
        done = subprocess.run(
            words, cwd=cwd, env=self.environment, input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise BenchError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self, name: str, *argv: object) -> subprocess.Popen[bytes]:
        """Start a program; what it writes goes to ``<name>.log``."""
        words = [str(WAYBILL) if word == "waybill" else str(word) for word in argv]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                words, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._running.append((name, process))
        return process

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def wait(self, what: str, seen: Callable[[], Any], seconds: float = 20.0) -> Any:
        """Wait until ``seen()`` is true; returns it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := seen():
                return value
            for name, process in self._running:
                if process.poll() is not None:
                    raise BenchError(f"{name} ended with {process.returncode}:\n{self.log(name)[-2000:]}")
            time.sleep(0.01)
        raise BenchError(f"{what} did not happen within {seconds:.0f} s")


class Repository:
    """A bare repository and a clone whose every commit is a new version of the sample service."""

    def __init__(self, programs: Programs, service_file: str = "") -> None:
        self._programs = programs
        self.bare, self.work = programs.folder / "app.git", programs.folder / "app"
        programs.run("git", "init", "-q", "--bare", "-b", "main", self.bare)
        programs.run("git", "init", "-q", "-b", "main", self.work)
        programs.run("git", "remote", "add", "origin", self.bare, cwd=self.work)
        shutil.copy(SAMPLE, self.work)
        if service_file:
            (self.work / "waybill.yml").write_text(service_file)

    def commit(self, version: str) -> str:
        (self.work / "VERSION").write_text(version + "\n")
        self._programs.run("git", "add", "-A", cwd=self.work)
        self._programs.run("git", "commit", "-q", "-m", version, cwd=self.work)
        return self._programs.run("git", "rev-parse", "HEAD", cwd=self.work).strip()

    def push(self) -> subprocess.Popen[bytes]:
        """Begin ``git push``."""
        return subprocess.Popen(
            ["git", "push", "-q", "origin", "main"],
            cwd=self.work,
            env=self._programs.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )


class Server:
    """A Waybill server on loopback, with an admin who is logged in; ``hello/production`` may come from one repository.

    Args:
        programs: Where it runs.
        port: On which the sample service listens.
    """

    def __init__(self, programs: Programs, port: int) -> None:
        self.programs = programs
        self.data = programs.folder / "server"
        self.port, self.agents_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.repository = Repository(programs, SERVICE_FILE.format(port=port, drain=DRAIN))
        self._hosts: list[str] = []

    def start(self) -> subprocess.Popen[bytes]:
        programs = self.programs
        words = ["--data", self.data, "--port", self.port, "--agents-port", self.agents_port]
        process = programs.start("server", "waybill", "serve", *words)
        self.token = programs.wait("the server's start", lambda: _word(programs.log("server"), "wbt_"))
        programs.wait("the server's answer", self._ready)
        programs.run("waybill", "login", self.url, stdin=self.token)
        return process

    def connect_repository(self) -> None:
        """Make the repository known, install its hook and grant what it may do."""
        programs, bare = self.programs, self.repository.bare
        self.api("/api/repositories", {"name": "team/hello", "url": str(bare)})
        made = programs.run("waybill", "hook", "create", "--forge", "generic", "--repository", "team/hello", "--json")
        hook = json.loads(made)
        secret = programs.folder / "hook.secret"
        secret.write_text(hook["secret"])
        secret.chmod(0o600)
        words = ["--server", hook["url"], "--name", "team/hello", "--secret-file", secret]
        programs.run("waybill", "hook", "install", bare, *words)
        grant = ["waybill", "grant", "hello/production", "--repository", "team/hello", "--branch", "main"]
        programs.run(*grant, "--host", "role=web")

    def host(self, name: str) -> subprocess.Popen[bytes]:
        """Enrol a host on this machine and start its agent."""
        programs = self.programs
        made = json.loads(programs.run("waybill", "enroll", "--label", "role=web", "--json"))
        state = programs.folder / name
        words = ["--name", name, "--allow", "hello/production", "--state", state, "--no-accounts"]
        programs.run("waybill", "agent", "enroll", made["token"], *words)
        file = state / "agent.toml"
        file.write_text(file.read_text().replace('address = ""', 'address = "127.0.0.1"'))
        process = programs.start(name, "waybill", "agent", "run", "--state", state)
        self._hosts.append(name)
        programs.wait(
            f"{name}'s connection",
            lambda: all(one["connected"] for one in self.api("/api/status")["hosts"] if one["name"] == name),
        )
        return process

    def stop_services(self, port: int) -> None:
        """Take the service off its hosts: their keepers stop it and end."""
        for name in self._hosts:
            self.api(f"/api/hosts/{name}/remove", {"service": "hello", "environment": "production"})
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline and asks(port):
            time.sleep(0.05)

    def api(self, path: str, body: object = None) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=20) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def rollout(self, commit: str, seconds: float = 60.0) -> dict[str, Any]:
        """The rollout of a commit once it has ended."""

        def ended() -> dict[str, Any] | None:
            return next(
                (one for one in self.api("/api/rollouts?limit=5") if one["commit"] == commit and one["finished"]), None
            )

        found: dict[str, Any] = self.programs.wait(f"the end of the rollout of {commit[:12]}", ended, seconds)
        return found

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.HTTPError):
            return False


DRAIN = 2
"""Seconds that established connections stay with the old version."""
SERVICE_FILE = """\
service: hello
environments:
  production:
    branches: [main]
    hosts: {{role: web}}
    run: {{driver: process, command: [/usr/bin/env, python3, hello.py], port: {port}, drain: {drain}s}}
    health: {{path: /, within: 20s}}
"""


def asks(port: int, timeout: float = 1.0) -> str:
    """The version that answers on a port, asked on a new connection; empty when none does."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
            data = b""
            while chunk := connection.recv(65536):
                data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        return str(json.loads(body)["version"]) if head.startswith(b"HTTP/1.1 200") else ""
    except (OSError, ValueError):
        return ""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def memory(pid: int) -> float:
    """Resident memory of a process in MiB."""
    return _status(pid, "VmRSS")


def peak_memory(pid: int) -> float:
    """The most resident memory that a process has had, in MiB."""
    return _status(pid, "VmHWM")


def processor_time(pid: int) -> float:
    """Seconds of processor time that a process has used, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quantile(values: Iterable[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], notes: Sequence[str] = ()) -> None:
    """Print a table: the first column to the left, numbers to the right."""
    cells = [list(columns)] + [
        [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows
    ]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    print(f"\n{title}  ({machine()})")
    for number, row in enumerate(cells):
        line = "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print(f"  {line}".rstrip())
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))
    for note in notes:
        print(f"  {note}")
    sys.stdout.flush()


def machine() -> str:
    """What it was measured on, and how busy that was."""
    return f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}"


def verdict(reached: bool) -> str:
    return "reached" if reached else "NOT reached"


def _status(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def _word(text: str, start: str) -> str:
    return next((word for word in text.split() if word.startswith(start)), "")
