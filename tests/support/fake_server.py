"""A stateful stand-in for the server: the agents' port over real mutual TLS, and enrolment on a plain one.

It is strict: a request that a right agent would not make is kept in ``wrongs``, and ``close`` fails the test for it. It
can lose its past, go back in time, send twice, and drop a request before or after its effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import ssl
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import h11
import msgspec

from waybill.agent import enrol
from waybill.core import clock, ids
from waybill.infra.ca import Authority
from waybill.infra.keys import Keys
from waybill.trust import manifest as manifests
from waybill.trust.manifest import Manifest
from waybill.wire.agent import (
    Abandon,
    BuildOrder,
    Desired,
    Enrolled,
    Enrolment,
    Hello,
    LogLines,
    LogsWanted,
    Remove,
    Report,
    Reports,
)


@dataclass
class Fault:
    """What goes wrong the next ``times`` times that ``what`` (method and beginning of path) is asked."""

    what: str
    how: str  # before | after | corrupt | cut | stall (until released), or a status
    times: int = 1


@dataclass
class FakeServer:
    folder: Path
    repositories: dict[str, Path] = field(default_factory=dict)
    heartbeat: int = 20
    skew: float = 0.0

    def __post_init__(self):
        self.id = ids.new_id()
        self.revision = 0
        self.messages: dict[tuple, tuple[int, bytes]] = {}
        self.reports: list[Report] = []
        self.facts = []
        self.builds: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.build_failures: dict[str, dict] = {}
        self.logs: dict[str, list[str]] = {}
        self.ended: set[str] = set()
        self.recipients: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.wrongs: list[str] = []
        self.requests: list[str] = []
        self.commits: set[tuple[str, str]] = set()
        self.streams = 0
        self.released = asyncio.Event()
        self.port = 0
        self._changed = asyncio.Condition()
        self._servers = []
        self._connections: set[asyncio.StreamWriter] = set()
        self._authority = Authority(Keys(self.folder))
        self._secret = "a secret that never travels"

    # what a test does

    async def start(self):
        certificate, key = self._authority.server_files(["https://127.0.0.1"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(self._authority.root_file)
        context.verify_mode = ssl.CERT_REQUIRED
        server = await asyncio.start_server(self._agents, "127.0.0.1", self.port, ssl=context)
        public = await asyncio.start_server(self._public, "127.0.0.1", 0)
        self._servers = [server, public]
        self.port = server.sockets[0].getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        self.public_url = f"http://127.0.0.1:{public.sockets[0].getsockname()[1]}"
        return self

    async def stop(self):
        """Go away without a word."""
        for server in self._servers:
            server.close()
        self.drop()
        await asyncio.sleep(0)

    def drop(self):
        for writer in list(self._connections):
            writer.transport.abort()

    async def close(self):
        await self.stop()
        assert not self.wrongs, self.wrongs

    def forget(self):
        """Lose the database."""
        self.id = ids.new_id()
        self.revision = 0
        self.messages.clear()
        self.reports.clear()

    def token(self, **changes):
        values = {
            "url": self.public_url,
            "id": "t1",
            "secret": self._secret,
            "ca": self._authority.fingerprint,
        } | changes
        return enrol.write_token(enrol.Token(**values))

    async def desire(self, manifest: Manifest, *, rollout="", sealed=None, once=True):
        self.commits.add((manifest.repository, manifest.commit))
        await self.say(
            ("desired", manifest.key),
            lambda revision: Desired(
                revision=revision,
                rollout=rollout or f"rollout-{manifest.sequence}",
                manifest=manifests.encode(manifest).decode(),
                sealed=sealed,
                once=once,
            ),
        )

    async def abandon(self, service, environment, sequence):
        await self.say(
            ("abandon", service, environment),
            lambda revision: Abandon(revision=revision, service=service, environment=environment, sequence=sequence),
        )

    async def remove(self, service, environment, by="ada"):
        await self.say(
            ("desired", f"{service}/{environment}"),
            lambda revision: Remove(revision=revision, service=service, environment=environment, by=by),
        )

    async def order(self, order, service, repository, commit, file="waybill.yml"):
        self.commits.add((repository, commit))
        await self.say(
            ("build", order),
            lambda revision: BuildOrder(
                revision=revision, id=order, service=service, repository=repository, commit=commit, file=file
            ),
        )

    async def watch(self, watcher, service, environment, lines=10, seconds=0):
        await self.say(
            ("logs", watcher),
            lambda _: LogsWanted(id=watcher, service=service, environment=environment, lines=lines, seconds=seconds),
        )

    async def say(self, key, make):
        async with self._changed:
            self.revision += 1
            self.messages.pop(key, None)
            self.messages[key] = (self.revision, msgspec.json.encode(make(self.revision)))
            self._changed.notify_all()

    async def until(self, condition, seconds=20.0):
        """Wait until a report makes the condition true."""
        async with asyncio.timeout(seconds), self._changed:
            while not (found := condition()):
                await self._changed.wait()
            return found

    async def reported(self, state, sequence, seconds=20.0, **other):
        def found():
            return next(
                (
                    one
                    for one in reversed(self.reports)
                    if (one.state, one.sequence) == (state, sequence)
                    and all(getattr(one, name) == value for name, value in other.items())
                ),
                None,
            )

        try:
            return await self.until(found, seconds)
        except TimeoutError:
            last = [(one.state, one.sequence, one.reason, one.evidence) for one in self.reports]
            raise AssertionError(f"never reported {state} {sequence} {other}: {last}") from None

    # how it answers

    async def _agents(self, reader, writer):
        certificate = writer.get_extra_info("peercert")
        host = dict(pair[0] for pair in certificate["subject"])["commonName"]
        await self._serve(reader, writer, host)

    async def _public(self, reader, writer):
        await self._serve(reader, writer, None)

    async def _serve(self, reader, writer, host):
        self._connections.add(writer)
        connection = h11.Connection(h11.SERVER)
        try:
            while True:
                request, body = await _request(connection, reader)
                if request is None:
                    return
                what = f"{request.method.decode()} {request.target.decode()}"
                self.requests.append(what)
                fault = self._fault(what)
                if fault == "before":
                    writer.transport.abort()
                    return
                if fault == "stall":
                    await self.released.wait()
                if fault.isdigit():
                    await _send(connection, writer, int(fault), b'{"detail":"asked to fail","hint":""}')
                elif what.startswith("GET /v1/desired"):
                    await self._stream(connection, writer, what, host)
                    return
                else:
                    status, answer = await self._answer(what, body, host, fault)
                    if fault == "after":
                        writer.transport.abort()
                        return
                    if fault == "cut":
                        await _cut(connection, writer, answer)
                        return
                    await _send(connection, writer, status, answer)
                connection.start_next_cycle()
        except (ConnectionError, ssl.SSLError, h11.RemoteProtocolError, h11.LocalProtocolError):
            pass
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            self._connections.discard(writer)
            writer.transport.abort()

    def _fault(self, what):
        for fault in self.faults:
            if what.startswith(fault.what) and fault.times > 0:
                fault.times -= 1
                return fault.how
        return ""

    async def _stream(self, connection, writer, what, host):
        since = int(parse_qs(urlsplit(what.split(" ")[1]).query)["since"][0])
        self.streams += 1
        at = clock.later(self.skew)
        hello = Hello(server=self.id, host=host, at=at, heartbeat=self.heartbeat, revision=self.revision)
        headers = [("content-type", "application/x-ndjson"), ("transfer-encoding", "chunked")]
        writer.write(connection.send(h11.Response(status_code=200, headers=headers)))
        await _chunk(connection, writer, msgspec.json.encode(hello) + b"\n")
        sent = since
        while not writer.transport.is_closing():
            due = sorted((revision, line) for revision, line in self.messages.values() if revision > sent)
            for revision, line in due:
                sent = max(sent, revision)
                await _chunk(connection, writer, line + b"\n")
            async with self._changed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.heartbeat / 2):
                        await self._changed.wait()
            await _chunk(connection, writer, b"\n")

    async def _answer(self, what, body, host, fault):
        method, target = what.split(" ")
        path = unquote(urlsplit(target).path)
        match method, path.strip("/").split("/"):
            case "POST", ["api", "enrol"] if host is None:
                return self._enrol(msgspec.json.decode(body, type=Enrolment))
            case "POST", ["v1", "report"]:
                await self._report(msgspec.json.decode(body, type=Reports))
                return 204, b""
            case "GET", ["v1", "commits", *repository, pack]:
                name, commit = "/".join(repository), pack.removesuffix(".pack")
                if (name, commit) not in self.commits:
                    self.wrongs.append(f"asked for a commit that was never mentioned: {what}")
                packed = await asyncio.to_thread(pack_of, self.repositories[name], commit)
                if packed is None:
                    return 404, json.dumps({"detail": f"commit {commit[:12]} of {name} is gone."}).encode()
                if fault == "corrupt":
                    middle = len(packed) // 2
                    packed = packed[:middle] + bytes([packed[middle] ^ 0xFF]) + packed[middle + 1 :]
                return 200, packed
            case "GET", ["v1", "builds", digest]:
                data = self.builds.get(digest)
                if data is None:
                    return 404, b'{"detail":"no such build."}'
                return 200, data[:-1] + b"?" if fault == "corrupt" else data
            case "PUT", ["v1", "builds", order]:
                self.uploads[order] = body
                await self._wake()
                return 204, b""
            case "POST", ["v1", "builds", order, "failed"]:
                self.build_failures[order] = json.loads(body)
                await self._wake()
                return 204, b""
            case "POST", ["v1", "logs", watcher]:
                lines = msgspec.json.decode(body, type=LogLines)
                self.logs.setdefault(watcher, []).extend(lines.lines)
                if lines.end:
                    self.ended.add(watcher)
                await self._wake()
                return 204, b""
        self.wrongs.append(what)
        return 404, b"{}"

    def _enrol(self, request):
        expected = enrol.proof(self._secret, request.token, request.name, request.csr, request.recipient)
        if request.token != "t1" or not hmac.compare_digest(request.proof, expected):
            return 401, b'{"detail":"this token is not valid.","hint":"Ask for a new one."}'
        certificate, _ = self._authority.sign_host(request.name, request.csr)
        self.recipients[request.name] = request.recipient
        answer = Enrolled(host=request.name, certificate=certificate, ca=self._authority.pem, agents_url=self.url)
        return 201, msgspec.json.encode(answer)

    async def _report(self, body):
        if body.facts:
            self.facts.append(body.facts)
        for report in body.reports:
            if len(report.evidence) > 4096:
                self.wrongs.append("evidence over 4 KiB")
            self.reports.append(report)
        await self._wake()

    async def _wake(self):
        async with self._changed:
            self._changed.notify_all()


def pack_of(repository: Path, commit: str) -> bytes | None:
    """Exactly the objects of one commit."""
    listed = subprocess.run(
        ["git", "rev-list", "--objects", "--no-object-names", "--no-walk", commit],
        cwd=repository,
        capture_output=True,
    )
    if listed.returncode:
        return None
    return subprocess.run(
        ["git", "pack-objects", "--stdout", "-q"], cwd=repository, input=listed.stdout, capture_output=True, check=True
    ).stdout


async def _request(connection, reader):
    request, body = None, b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return request, body
        else:
            return None, b""


async def _send(connection, writer, status, content):
    writer.write(connection.send(h11.Response(status_code=status, headers=[("content-length", str(len(content)))])))
    writer.write(connection.send(h11.Data(data=content)) or b"")
    writer.write(connection.send(h11.EndOfMessage()) or b"")
    await writer.drain()


async def _cut(connection, writer, content):
    """Break off in the middle of an answer."""
    writer.write(connection.send(h11.Response(status_code=200, headers=[("content-length", str(len(content)))])))
    writer.write(connection.send(h11.Data(data=content[: len(content) // 2])))
    await writer.drain()
    writer.close()


async def _chunk(connection, writer, data):
    writer.write(connection.send(h11.Data(data=data)))
    await writer.drain()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
