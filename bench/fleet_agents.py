"""The simulated agents of ``bench.fleet``, in a process of their own.

``read`` agents are plain TLS sockets in one epoll loop, so that hearing costs next to nothing beside the server's
work. ``switch`` agents speak on two connections each, as real ones do.
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

from waybill.core.clock import stamp

WANTED = b'"type":"desired"'


def main(mode: str, names: list[str], folder: str, port: int, control: Connection) -> None:
    """Connect all agents, say ``connected``, then answer each number with that many moments."""
    if mode == "read":
        _read(names, Path(folder), port, control)
    else:
        import uvloop

        uvloop.run(_switch(names, Path(folder), port, control))


def context(name: str, folder: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.load_verify_locations(folder / "ca.pem")
    made.load_cert_chain(folder / f"{name}.pem", folder / "key.pem")
    return made


def _open(name: str, folder: Path, port: int) -> ssl.SSLSocket:
    for attempt in range(5):
        try:
            plain = socket.create_connection(("127.0.0.1", port), 60)
            stream = context(name, folder).wrap_socket(plain, server_hostname="127.0.0.1")
            stream.sendall(b"GET /v1/desired?since=0 HTTP/1.1\r\nHost: bench\r\n\r\n")
            data = b""
            while b'"type":"hello"' not in data:
                chunk = stream.recv(65536)
                if not chunk:
                    raise ConnectionResetError
                data += chunk
        except OSError:
            if attempt == 4:
                raise
            time.sleep(0.5)
        else:
            stream.setblocking(False)
            return stream
    raise AssertionError


def _read(names: list[str], folder: Path, port: int, control: Connection) -> None:
    with ThreadPoolExecutor(4) as pool:
        streams = {one.fileno(): one for one in pool.map(lambda name: _open(name, folder, port), names)}
    poll = select.epoll()
    for number in streams:
        poll.register(number, select.EPOLLIN)
    poll.register(control.fileno(), select.EPOLLIN)
    control.send("connected")
    moments: list[float] = []
    wanted = 0
    while True:
        for number, _ in poll.poll():
            if number == control.fileno():
                wanted = control.recv()
                continue
            try:
                while data := streams[number].recv(65536):
                    if WANTED in data:
                        moments.append(time.time())
                if not data:
                    poll.unregister(number)
            except ssl.SSLWantReadError:
                pass
        if wanted and len(moments) >= wanted:
            control.send(moments)
            moments, wanted = [], 0


async def _switch(names: list[str], folder: Path, port: int, control: Connection) -> None:
    moments: list[float] = []
    connected = asyncio.Semaphore(0)
    agents = [asyncio.create_task(_agent(name, folder, port, connected, moments)) for name in names]
    for _ in names:
        await connected.acquire()
    control.send("connected")
    while True:
        wanted = await asyncio.to_thread(control.recv)
        while len(moments) < wanted:
            for agent in agents:
                if agent.done():
                    agent.result()
            await asyncio.sleep(0.002)
        control.send(moments[:])
        moments.clear()


async def _agent(name: str, folder: Path, port: int, connected: asyncio.Semaphore, moments: list[float]) -> None:
    tls = context(name, folder)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname="127.0.0.1")
    other = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname="127.0.0.1")
    writer.write(b"GET /v1/desired?since=0 HTTP/1.1\r\nHost: bench\r\n\r\n")
    await reader.readuntil(b'"type":"hello"')
    connected.release()
    while line := await reader.readline():
        if WANTED not in line:
            continue
        manifest = json.loads(json.loads(line)["manifest"])
        await _report(other, manifest, "preparing")
        path = f"/v1/commits/{manifest['repository']}/{manifest['commit']}.pack?path=waybill.yml"
        await _exchange(other, f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        await _report(other, manifest, "live")
        moments.append(time.time())


async def _report(connection, manifest: dict[str, str], state: str) -> None:
    live = {"live_sequence": manifest["sequence"], "live_commit": manifest["commit"]} if state == "live" else {}
    about = {name: manifest[name] for name in ("service", "environment", "sequence")}
    body = json.dumps({"reports": [about | {"state": state, "at": stamp()} | live]}).encode()
    head = f"POST /v1/report HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
    await _exchange(connection, head.encode() + body)


async def _exchange(connection, data: bytes) -> bytes:
    reader, writer = connection
    writer.write(data)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 2"):
        raise ConnectionError(head.decode())
    if b"transfer-encoding: chunked" in head:
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
        return body
    lengths = [line for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
    return await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b""
