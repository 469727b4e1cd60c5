"""Deployments in a row under load: every request has to be answered, by a version that may answer.

A request is lost when it is refused, reset, answered with 5xx or by a wrong version, or takes over 1 s. On a new
connection only the version before and the one after a push may answer, and only the latter from 0.1 s after the
rollout is done. An established connection stays with its version for the service's drain, so there a version is wrong
from two seconds after that. The time of a deployment runs from the start of ``git push`` to the new version's
first answer; the next one begins once the rollout is done.
"""

from __future__ import annotations

import asyncio
import time

from demo.load import Load

from bench.harness import DRAIN, Programs, Server, free_port, quantile, table, verdict
from bench.push import push

CLIENTS = 8
"""Of each kind."""
LASTS = 480.0
"""Seconds after which no further deployment is begun."""


def run(*, quick: bool) -> None:
    asyncio.run(_run(10 if quick else 100))


async def _run(count: int) -> None:
    with Programs() as programs:
        port = free_port()
        server = Server(programs, port)
        server.start()
        server.host("web1")
        server.connect_repository()
        try:
            server.rollout(_deploy(server, port, 0)[0])
            newest = {"v0"}
            until: dict[str, float] = {}
            new = Load(port, fresh=CLIENTS, kept=0, allowed=newest.__contains__, pause=0.02)
            kept = Load(
                port,
                fresh=0,
                kept=CLIENTS,
                allowed=lambda version: time.monotonic() < until.get(version, float("inf")),
                pause=0.02,
            )
            seconds: list[float] = []
            began = time.monotonic()
            for number in range(1, count + 1):
                if time.monotonic() - began > LASTS:
                    break
                newest |= {f"v{number}"}
                commit, took = await asyncio.to_thread(_deploy, server, port, number)
                seconds.append(took)
                await asyncio.to_thread(server.rollout, commit)
                until[f"v{number - 1}"] = time.monotonic() + DRAIN + 2
                await asyncio.sleep(0.1)  # answers that were under way at the switch
                newest -= {f"v{number - 1}"}
            tallies = [await new.stop(), await kept.stop()]
        finally:
            await asyncio.to_thread(server.stop_services, port)
    lost = sum(sum(tally.lost.values()) for tally in tallies)
    rows: list[list[object]] = []
    for words, tally in zip(("a connection for each request", "kept-alive connections"), tallies, strict=True):
        how = ", ".join(f"{number} {name}" for name, number in sorted(tally.lost.items()))
        rows.append([words, CLIENTS, sum(tally.sent.values()), sum(tally.lost.values()), how])
    spread = f"best {min(seconds):.2f}, median {quantile(seconds, 0.5):.2f}, p90 {quantile(seconds, 0.9):.2f}"
    notes = [
        f"seconds from push to the new version's answer, under this load: {spread}, worst {max(seconds):.2f}",
        f"slowest answer: {max(tally.slowest for tally in tallies) * 1000:.0f} ms",
        *(detail for tally in tallies for detail in tally.details[:5]),
    ]
    reached = verdict(lost == 0 and len(seconds) == count)
    notes.append(f"target: 0 lost in {count} deployments: {reached} ({lost} lost in {len(seconds)})")
    table(f"deployments: {len(seconds)} in a row", ["requests", "clients", "sent", "lost", "how"], rows, notes)


def _deploy(server: Server, port: int, number: int) -> tuple[str, float]:
    commit = server.repository.commit(f"v{number}")
    return commit, push(server.repository, port, f"v{number}")
