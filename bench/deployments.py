"""Deployments in a row under load: every request has to be answered, by the version that should answer.

A request is lost when it is refused, reset, answered with 5xx or by a version that is neither the one before nor the
one after, or takes over 1 s. Clients that open a connection for each request and clients that keep theirs are
counted apart. The time of a deployment runs from the start of ``git push`` to the new version's first answer; the next
one begins once the rollout is done.
"""

from __future__ import annotations

import asyncio
import time

from demo.load import Load

from bench.harness import Programs, Server, free_port, quantile, table, verdict
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
            allowed = {"v0"}
            load = Load(port, fresh=CLIENTS, kept=CLIENTS, allowed=allowed.__contains__, pause=0.02)
            seconds: list[float] = []
            began = time.monotonic()
            for number in range(1, count + 1):
                if time.monotonic() - began > LASTS:
                    break
                allowed |= {f"v{number}"}
                commit, took = await asyncio.to_thread(_deploy, server, port, number)
                seconds.append(took)
                await asyncio.to_thread(server.rollout, commit)
                await asyncio.sleep(0.1)  # answers that were under way at the switch
                allowed -= {f"v{number - 1}"}
            tally = await load.stop()
        finally:
            await asyncio.to_thread(server.stop_services, port)
    lost = sum(tally.lost.values())
    rows: list[list[object]] = []
    for kind, words in (("new", "a connection for each request"), ("kept", "kept-alive connections")):
        gone = sum(number for name, number in tally.lost.items() if name.startswith(f"{kind} "))
        how = ", ".join(
            f"{number} {name}" for name, number in sorted(tally.lost.items()) if name.startswith(f"{kind} ")
        )
        rows.append([words, CLIENTS, tally.sent[kind], gone, how])
    spread = f"best {min(seconds):.2f}, median {quantile(seconds, 0.5):.2f}, p90 {quantile(seconds, 0.9):.2f}"
    notes = [
        f"seconds from push to the new version's answer, under this load: {spread}, worst {max(seconds):.2f}",
        f"slowest answer: {tally.slowest * 1000:.0f} ms",
        *tally.details[:5],
        (
            f"target: 0 lost in {count} deployments: {verdict(lost == 0 and len(seconds) == count)}"
            f" ({lost} lost in {len(seconds)})"
        ),
    ]
    table(f"deployments: {len(seconds)} in a row", ["requests", "clients", "sent", "lost", "how"], rows, notes)


def _deploy(server: Server, port: int, number: int) -> tuple[str, float]:
    commit = server.repository.commit(f"v{number}")
    return commit, push(server.repository, port, f"v{number}")
