"""A small web service as a team would write it: listens on $PORT, ends politely on SIGTERM.

It answers with its version, its secret and its process. What is in the file ``behaviour`` beside it makes it fail.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

HERE = Path(__file__).parent
VERSION = (HERE / "version").read_text().strip()
BEHAVIOUR = (HERE / "behaviour").read_text().strip() if (HERE / "behaviour").exists() else ""
closing = asyncio.Event()
connections: set[asyncio.Task] = set()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connections.add(task := asyncio.current_task())
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1]
            if path == b"/slow":
                await asyncio.sleep(1)
            status = "500 Broken" if BEHAVIOUR == "broken" else "200 OK"
            body = json.dumps({"version": VERSION, "secret": os.environ.get("SECRET"), "pid": os.getpid()}).encode()
            last = closing.is_set() or b"connection: close" in head.lower()
            mark = "close" if last else "keep-alive"
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: {mark}\r\n\r\n".encode() + body
            )
            await writer.drain()
            if last:
                return
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        connections.discard(task)
        writer.close()


async def main() -> None:
    if BEHAVIOUR == "crash":
        sys.exit("it cannot start: the reason is printed")
    address = "127.0.0.1" if BEHAVIOUR == "loopback" else None
    server = await asyncio.start_server(serve, address, int(os.environ["PORT"]), backlog=256)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, closing.set)
    await closing.wait()
    server.close()
    if connections:  # each gets its last answer; who asks nothing any more is let go
        await asyncio.wait(connections, timeout=2)


asyncio.run(main())
