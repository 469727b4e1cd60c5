"""Start of the command line, memory of what waits, size of an installation.

Memory is what ``VmRSS`` says of each process after two seconds of rest; pages that processes share count in each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from bench.harness import (
    WAYBILL,
    BenchError,
    Programs,
    Server,
    free_port,
    memory,
    quantile,
    table,
    verdict,
)
from bench.push import push

ROOT = Path(__file__).parent.parent


def run(*, quick: bool) -> None:
    _start(10 if quick else 40)
    _memory()
    _installed()


def _start(count: int) -> None:
    rows = []
    for name, argv in (
        ("waybill --help", [WAYBILL, "--help"]),
        ("waybill --version", [WAYBILL, "--version"]),
        ("python -c pass", [sys.executable, "-c", "pass"]),
    ):
        walls, processor = [], []
        for _ in range(count):
            before, began = os.times(), time.perf_counter()
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
            after = os.times()
            walls.append((time.perf_counter() - began) * 1000)
            used = after.children_user + after.children_system - before.children_user - before.children_system
            processor.append(used * 1000)
        rows.append([name, count, min(walls), quantile(walls, 0.5), sum(processor) / count])
    notes = [f"target: waybill --help ≤ 100 ms: {verdict(rows[0][3] <= 100)} (median {rows[0][3]:.0f} ms)"]
    table("sizes: start of the command line", ["ms", "runs", "best", "median", "CPU, mean"], rows, notes)


def _memory() -> None:
    with Programs() as programs:
        port = free_port()
        server = Server(programs, port)
        serving = server.start()
        agent = server.host("web1")
        server.connect_repository()
        try:
            time.sleep(2)
            fresh = memory(agent.pid)
            server.rollout(_first(server, port))
            time.sleep(2)
            rows: list[list[object]] = [
                ["agent, its stream open, nothing deployed yet", fresh],
                ["agent after its first deployment", memory(agent.pid)],
                ["server, one host, SQLite", memory(serving.pid)],
            ]
            for pid, words in _others(programs.folder, {agent.pid, serving.pid}):
                rows.append([words, memory(pid)])
        finally:
            server.stop_services(port)
    most = max(float(str(row[1])) for row in rows[:2])
    notes = [f"target: idle agent ≤ 45 MiB: {verdict(most <= 45)} ({most:.1f} MiB)"]
    table("sizes: resident memory", ["process", "MiB"], rows, notes)


def _first(server: Server, port: int) -> str:
    commit = server.repository.commit("v1")
    push(server.repository, port, "v1")
    return commit


def _others(folder: Path, known: set[int]) -> list[tuple[int, str]]:
    """The keeper and the service itself: processes that name the folder and that nobody here started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
            inside = str(path.joinpath("cwd").readlink()).startswith(str(folder))
        except OSError:
            continue
        if int(path.name) in known or not (inside or any(str(folder) in word for word in words)):
            continue
        if "hello.py" in words:
            found.append((int(path.name), "the sample service itself, beside"))
        elif any("keeper" in word for word in words):
            found.append((int(path.name), "keeper of the process driver"))
    return sorted(found, key=lambda one: one[1])


def _installed() -> None:
    """Install what a host gets, from the lock file and from the wheel, into a fresh environment."""
    uv = Path(sys.executable).with_name("uv")
    rows: list[list[object]] = []
    with Programs() as programs:
        wheels, target = programs.folder / "wheels", programs.folder / "host"
        try:
            programs.run(sys.executable, "-m", "venv", "--without-pip", target)
            empty = _size(target)
            build = [uv, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "-o", wheels, ROOT]
            programs.run(*build)
            wheel = next(wheels.glob("*.whl"))
            install = [uv, "pip", "install", "--python", target / "bin/python"]
            programs.run(*install, "--require-hashes", "-r", ROOT / "requirements/host.txt")
            locked = _size(target)
            programs.run(*install, "--no-deps", wheel)
        except (BenchError, StopIteration) as error:
            print(f"  the size of an installation could not be measured: {error}", file=sys.stderr)
            return
        rows.append(["the wheel", wheel.stat().st_size / 1024**2])
        rows.append(["packages that a host needs, installed", locked - empty])
        rows.append(["a host's whole environment", _size(target)])
    table("sizes: an installation", ["what", "MiB"], rows)


def _size(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1024**2
