"""A small HTTP service: standard library only, takes the socket that it inherits, drains on SIGTERM.

It answers every path with JSON that names its version. After SIGTERM it goes on serving; every answer then says
``Connection: close``, and it ends when the last connection has closed. Variables: ``VERSION``; ``BROKEN=1`` answers 500
on every path; ``CRASH=1`` ends at once; ``SLOW`` seconds before each answer; ``STARTS`` a file that gets a line for
each start.
"""

import asyncio
import json
import os
import signal
import socket
import sys

VERSION = os.environ.get("VERSION", "dev")
BROKEN = os.environ.get("BROKEN") == "1"
SLOW = float(os.environ.get("SLOW", "0"))


def listening_socket() -> socket.socket:
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and int(os.environ.get("LISTEN_FDS", "0")) > 0:
        return socket.socket(fileno=3)
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", int(os.environ.get("PORT", "8080"))))
    made.listen(1024)
    return made


class Service:
    def __init__(self) -> None:
        self.draining = asyncio.Event()
        self.open = 0
        self.idle = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while await self.answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self.open -= 1
            if not self.open:
                self.idle.set()
            writer.close()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if SLOW:
            await asyncio.sleep(SLOW)
        keep = b"connection: close" not in head and not self.draining.is_set()
        body = json.dumps({"version": VERSION, "pid": os.getpid()}).encode() + b"\n"
        status = "500 Internal Server Error" if BROKEN else "200 OK"
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        return keep

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.draining.set)
        server = await asyncio.start_server(self.serve, sock=listening_socket(), backlog=4096)
        print(f"version {VERSION} serves", flush=True)
        await self.draining.wait()
        server.close()
        while self.open:
            self.idle.clear()
            await self.idle.wait()
        print(f"version {VERSION} has drained", flush=True)


if __name__ == "__main__":
    if os.environ.get("STARTS"):
        with open(os.environ["STARTS"], "a") as file:  # noqa: PTH123 - pathlib would cost each start some milliseconds
            file.write(f"{VERSION} {os.getpid()} {os.getcwd()}\n")  # noqa: PTH109 - the same
    if os.environ.get("CRASH") == "1":
        sys.exit("asked to crash")
    asyncio.run(Service().run())
