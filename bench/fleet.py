"""Many agents: 100 that switch, 5,000 that are told, all over real mutual TLS.

The agents are simulated in processes of their own: each has its own certificate, holds its own stream open and checks
the server's certificate, but places and starts nothing. Hosts and certificates are written straight into the server's
stores, since enrolling is not what is measured.

- *switch*: an agent that is told reports ``preparing``, fetches the commit's pack on a second connection, and reports
  ``live``. The clock runs from the start of ``git push`` to the last answer to ``live``, and to the rollout's end.
- *told*: an agent only reads. The clock runs from the moment at which the server begins to write the rollout's
  decision (before its commit) to the last stream having read it.
"""

from __future__ import annotations

import datetime as dt
import multiprocessing
import resource
import time
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bench import fleet_agents
from bench.harness import (
    BenchError,
    Programs,
    Server,
    free_port,
    memory,
    peak_memory,
    processor_time,
    quantile,
    table,
    verdict,
)
from waybill.deploy.model import Host
from waybill.deploy.store import hosts as store
from waybill.infra.ca import Authority
from waybill.infra.db import Database
from waybill.infra.keys import Keys

PATIENCE = 300
"""Seconds that all simulated agents have to connect."""


def run(*, quick: bool) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        switched(100, 3 if quick else 10)
        told(1000 if quick else 5000, 2 if quick else 5, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def switched(agents: int, rounds: int) -> None:
    """All agents fetch and report."""
    columns = ["switch", "agents", "last agent, s", "median agent, s", "rollout's end, s", "server CPU, s"]
    rows = []
    with Programs() as programs:
        server, process = _server(programs)
        with _connected(server, agents, 1, "switch") as workers:
            for number in range(rounds):
                commit = server.repository.commit(f"v{number}")
                before, began = processor_time(process.pid), time.time()
                pushing = server.repository.push()
                moments = _moments(workers, 30)
                pushing.wait(30)
                ended = _time(server.rollout(commit)["finished"])
                spent = processor_time(process.pid) - before
                rows.append(
                    [
                        f"push {number + 1}",
                        len(moments),
                        moments[-1] - began,
                        quantile(moments, 0.5) - began,
                        ended - began,
                        spent,
                    ]
                )
    last = quantile((row[2] for row in rows), 0.5)
    notes = [f"target: all {agents} switched ≤ 2 s: {verdict(last <= 2)} (median of {len(rows)} pushes {last:.2f} s)"]
    table("fleet, switch: told, pack fetched, live reported", columns, rows, notes)


def told(agents: int, rounds: int, files: int) -> None:
    """All agents read."""
    agents = min(agents, (files - 500) // 2)
    columns = ["told", "agents", "last, s", "median, s", "from git push, s", "server CPU, s", "server MiB", "peak MiB"]
    rows: list[list[object]] = []
    with Programs() as programs:
        server, process = _server(programs)
        before = memory(process.pid)
        began = time.time()
        with _connected(server, agents, 2, "read") as workers:
            took = time.time() - began
            each = (memory(process.pid) - before) * 1024 / agents
            time.sleep(1)
            for number in range(rounds):
                commit = server.repository.commit(f"v{number}")
                spent, began = processor_time(process.pid), time.time()
                pushing = server.repository.push()
                moments = _moments(workers, 60)
                pushing.wait(30)
                rollout = next(one for one in server.api("/api/rollouts") if one["commit"] == commit)
                start = _time(rollout["started"])
                row = [f"push {number + 1}", len(moments), moments[-1] - start, quantile(moments, 0.5) - start]
                row += [moments[-1] - began, processor_time(process.pid) - spent]
                rows.append([*row, round(memory(process.pid)), round(peak_memory(process.pid))])
                server.api(f"/api/rollouts/{rollout['id']}/cancel", {"reason": "measured"})
                time.sleep(2)
            peak = peak_memory(process.pid)
    last = quantile((float(str(row[2])) for row in rows), 0.5)
    notes = [
        f"all connected after {took:.0f} s; {each:.0f} KiB of the server for each connected agent, {before:.0f} MiB without",
        f"target: {agents} agents told ≤ 1 s: {verdict(last <= 1)} (median of {len(rows)} pushes {last:.2f} s)",
        f"target: server ≤ 1 GiB: {verdict(peak <= 1024)} (peak {peak:.0f} MiB)",
    ]
    table("fleet, told: mutual TLS streams that only read", columns, rows, notes)


def _server(programs: Programs):
    server = Server(programs, free_port())
    process = server.start()
    server.connect_repository()
    return server, process


@contextmanager
def _connected(server: Server, agents: int, processes: int, mode: str):
    """Processes that hold the agents, once all of these are connected."""
    folder = server.programs.folder / "certificates"
    names = _enrol(server, agents, folder)
    spawn = multiprocessing.get_context("spawn")
    workers: list[tuple[multiprocessing.process.BaseProcess, Connection, int]] = []
    try:
        for index in range(processes):
            ours, theirs = spawn.Pipe()
            mine = names[index::processes]
            process = spawn.Process(
                target=fleet_agents.main, args=(mode, mine, str(folder), server.agents_port, theirs)
            )
            process.start()
            workers.append((process, ours, len(mine)))
        for _, ours, _ in workers:
            if not ours.poll(PATIENCE) or ours.recv() != "connected":
                raise BenchError(f"the simulated agents did not connect within {PATIENCE} s")
        yield workers
    finally:
        for process, _, _ in workers:
            process.terminate()
            process.join(20)
            process.kill()


def _moments(workers, seconds: float) -> list[float]:
    """When each agent was through, by the clock, ascending."""
    moments: list[float] = []
    for _, ours, count in workers:
        ours.send(count)
    for _, ours, count in workers:
        if not ours.poll(seconds):
            raise BenchError(f"not all of {count} agents were through after {seconds:.0f} s")
        moments += ours.recv()
    return sorted(moments)


def _enrol(server: Server, agents: int, folder: Path) -> list[str]:
    """Write hosts and certificates; each certificate is its host's own, the key pair is one to save time."""
    folder.mkdir()
    authority = Authority(Keys(server.data))
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    csr = request.public_bytes(serialization.Encoding.PEM).decode()
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*form))
    (folder / "ca.pem").write_text(authority.pem)
    database = Database(f"sqlite:///{server.data}/waybill.sqlite")
    names = [f"host-{number:05}" for number in range(agents)]
    with database.engine.begin() as connection:
        use = {"id": "bench", "key": "", "labels": "{}", "uses": agents, "expires": "9999", "actor": "bench"}
        store.add_enrolment(connection, use)
        for name in names:
            certificate, serial = authority.sign_host(name, csr)
            (folder / f"{name}.pem").write_text(certificate)
            host = Host(name=name, labels={"role": "web"}, recipient="", fingerprint="", arch="x86_64")
            store.add_host(connection, "bench", host, serial)
    database.close()
    return names


def _time(stamp: str) -> float:
    return dt.datetime.fromisoformat(stamp).timestamp()
