"""The sample service: standard library only, takes the socket that it inherits, ends when its last connection closed.

It says which version answers, and that it could open its secret, without ever saying the secret.
"""

import asyncio
import hashlib
import json
import os
import signal
import socket
from pathlib import Path

VERSION = Path("VERSION").read_text().strip()
BROKEN = Path("BROKEN").exists()
SECRET = hashlib.sha256(os.environ.get("GREETING_KEY", "").encode()).hexdigest()[:8]


def inherited() -> socket.socket:
    """The listening socket, as systemd and Waybill's keeper hand it over (sd_listen_fds)."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        return socket.socket(fileno=3)
    made = socket.create_server(("127.0.0.1", int(os.environ.get("PORT", "8080"))))
    made.listen(1024)
    return made


class Hello:
    """One process of the service."""

    def __init__(self) -> None:
        self.draining = asyncio.Event()
        self.open: set[asyncio.Task[None]] = set()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self.open.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                stay = b"connection: close" not in head and not self.draining.is_set()
                body = json.dumps({"version": VERSION, "secret": SECRET, "pid": os.getpid()}) + "\n"
                status = "500 Internal Server Error" if BROKEN else "200 OK"
                keep = "keep-alive" if stay else "close"
                head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                writer.write((head + f"Connection: {keep}\r\n\r\n" + body).encode())
                await writer.drain()
                if not stay:
                    return
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return
        finally:
            self.open.discard(task)
            writer.close()

    async def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.draining.set)
        server = await asyncio.start_server(self.connection, sock=inherited(), backlog=1024)
        print(f"version {VERSION} serves", flush=True)
        await self.draining.wait()
        server.close()
        while self.open:  # answers say Connection: close now, so that no client is cut off
            await asyncio.wait(self.open)
        print(f"version {VERSION} has drained", flush=True)


asyncio.run(Hello().run())
