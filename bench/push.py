"""``git push`` → the new version answers: Waybill beside Debian's ``webhook``, pyinfra and ansible-core.

The clock starts with ``git push`` and stops when a new connection to the service's port is answered by the new
version, asked every 5 ms. Then, a few more times, the same under light load, where failed requests are counted.
The floor is what nobody can avoid: ``git push`` without a hook, then the start of the service's process alone.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from demo.load import Load

from bench.harness import BenchError, Programs, Repository, Server, asks, free_port, quantile, table, verdict
from bench.peers import PEERS, Peer

EVERY = 0.005
LOADED = 5
TARGET = 0.5
TIMES = 5.0


@dataclass
class Figures:
    """What one way of deploying reached."""

    name: str
    seconds: list[float] = field(default_factory=list)
    sent: int = 0
    failed: int = 0
    details: str = ""

    @property
    def median(self) -> float:
        return quantile(self.seconds, 0.5)


def run(*, quick: bool) -> None:
    count = 5 if quick else 21
    ours = _waybill(count)
    figures, missing = [ours], []
    floor = _floor(max(5, count // 2))
    for name, arrange in PEERS.items():
        if "webhook" in name and shutil.which("webhook") is None:
            missing.append(f"{name}: missing, apt install webhook")
            continue
        try:
            figures.append(_peer(name, arrange, max(5, count // 2)))
        except BenchError as error:
            missing.append(f"{name}: missing, {error}")
    rows = []
    for one in figures:
        times = one.median / ours.median
        compared = "" if one is ours else f"{times:.1f} x"
        spread = (min(one.seconds), one.median, quantile(one.seconds, 0.9))
        rows.append([one.name, len(one.seconds), *spread, compared, one.sent, one.failed, one.details])
    columns = ["push → live, seconds", "pushes", "best", "median", "p90", "to ours", "sent", "failed", "how"]
    rows.append(
        [floor.name, len(floor.seconds), min(floor.seconds), floor.median, quantile(floor.seconds, 0.9), *[""] * 4]
    )
    slowest = min((one.median / ours.median for one in figures[1:]), default=0.0)
    notes = [
        *missing,
        f"failed: requests refused, reset or answered 5xx in {LOADED} deployments under 4 clients",
        f"target ≤ {TARGET} s median: {verdict(ours.median <= TARGET)} ({ours.median:.3f} s)",
        f"target ≥ {TIMES:.0f} x faster than each peer: {verdict(slowest >= TIMES)} (least {slowest:.1f} x)",
    ]
    table("push: a small service without a build, one host on this machine", columns, rows, notes)


def _waybill(count: int) -> Figures:
    with Programs() as programs:
        port = free_port()
        server = Server(programs, port)
        server.start()
        server.host("web1")
        server.connect_repository()
        try:
            return _measure(
                "waybill, process driver", server.repository, port, count, lambda commit: server.rollout(commit)
            )
        finally:
            server.stop_services(port)


def _floor(count: int) -> Figures:
    figures = Figures("floor: git push, then the service's start")
    with Programs() as programs:
        repository, port = Repository(programs), free_port()
        words = ["/usr/bin/env", "python3", str(repository.work / "hello.py")]
        for number in range(count):
            repository.commit(f"v{number}")
            began = time.perf_counter()
            repository.push().communicate(timeout=40)
            service = subprocess.Popen(
                words, cwd=repository.work, env={**programs.environment, "PORT": str(port)}, stdout=subprocess.DEVNULL
            )
            try:
                while asks(port) != f"v{number}":
                    if time.perf_counter() - began > 40:
                        raise BenchError("the sample service does not start")
                    time.sleep(EVERY)
                figures.seconds.append(time.perf_counter() - began)
            finally:
                service.terminate()
                service.wait()
    return figures


def _peer(name: str, arrange: Callable[[Peer], None], count: int) -> Figures:
    with Programs() as programs:
        peer = Peer(name, programs)
        arrange(peer)
        try:
            return _measure(name, peer.repository, peer.port, count, lambda _commit: time.sleep(0.3))
        finally:
            peer.stop()


def _measure(name: str, repository: Repository, port: int, count: int, settle) -> Figures:
    figures = Figures(name)
    for number in range(count + 1):
        commit = repository.commit(f"v{number}")
        took = push(repository, port, f"v{number}")
        if number:  # the first one also starts what is there from then on
            figures.seconds.append(took)
        settle(commit)
    asyncio.run(_under_load(figures, repository, port, settle))
    return figures


def push(repository: Repository, port: int, version: str, patience: float = 40.0) -> float:
    """Push, and wait until this version answers; seconds from the start of ``git push``."""
    began = time.perf_counter()
    pushing = repository.push()
    while asks(port) != version:
        if time.perf_counter() - began > patience:
            pushing.kill()
            raise BenchError(f"{version} does not answer {patience:.0f} s after its push")
        time.sleep(EVERY)
    took = time.perf_counter() - began
    _, told = pushing.communicate(timeout=patience)
    if pushing.returncode:
        raise BenchError(f"git push ended with {pushing.returncode}: {told.decode()}")
    return took


async def _under_load(figures: Figures, repository: Repository, port: int, settle) -> None:
    load = Load(port, fresh=2, kept=2, pause=0.02)
    for number in range(LOADED):
        commit = await asyncio.to_thread(repository.commit, f"load{number}")
        await asyncio.to_thread(push, repository, port, f"load{number}")
        await asyncio.to_thread(settle, commit)
    tally = await load.stop()
    figures.sent, figures.failed = sum(tally.sent.values()), sum(tally.lost.values())
    figures.details = ", ".join(f"{count} {kind}" for kind, count in sorted(tally.lost.items()))
