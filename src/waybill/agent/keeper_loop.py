"""The keeper's event loop and its control socket: one thread, epoll, no work at all while nothing happens.

asyncio would do the same for 8 MiB more in every keeper. Standard library only: the keeper imports this.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import select
import socket
import struct
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

LONGEST_REQUEST = 1 << 20
Reply = Callable[[dict[str, Any]], None]


class RefusedError(Exception):
    """A request that the keeper does not fulfil; the text is told to the person."""


class Timer:
    """A callback that is due at a time, unless cancelled."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Never call it."""
        self.call = None


class Loop:
    """Readable descriptors and timers."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], object]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self.running = True
        self.failed: Callable[[str], None] = lambda text: None  # noqa: ARG005

    def watch(self, fd: int, call: Callable[[], object]) -> None:
        """Call whenever ``fd`` is readable."""
        self._calls[fd] = call
        self._epoll.register(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        """Stop watching; call before the descriptor is closed."""
        if self._calls.pop(fd, None):
            with suppress(OSError):
                self._epoll.unregister(fd)

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call once, in so many seconds."""
        timer = Timer(call)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._count), timer))
        return timer

    def run(self) -> None:
        """Run until ``running`` is false."""
        while self.running:
            while self._timers and self._timers[0][2].call is None:
                heapq.heappop(self._timers)
            wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for fd, _ in self._epoll.poll(wait):
                if call := self._calls.get(fd):
                    self._guarded(call)
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                _, _, timer = heapq.heappop(self._timers)
                if timer.call:
                    self._guarded(timer.call)

    def _guarded(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception:  # noqa: BLE001 - a fault in one matter must not end the care for all others
            self.failed(traceback.format_exc())


class Control:
    """Requests and answers, a JSON object a line, on a unix socket that only root and the keeper's own user may use."""

    def __init__(self, loop: Loop, listener: socket.socket, handle: Callable[[dict[str, Any], Reply], None]) -> None:
        self.listener = listener
        self.open: dict[int, socket.socket] = {}
        self._loop = loop
        self._handle = handle
        listener.setblocking(False)
        loop.watch(listener.fileno(), self._accept)

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            peer, _ = self.listener.accept()
            _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid not in {0, os.geteuid()}:
                peer.close()
                return
            self.take(peer)

    def take(self, peer: socket.socket) -> None:
        """Serve this connection."""
        peer.setblocking(False)
        held = bytearray()
        self.open[peer.fileno()] = peer
        self._loop.watch(peer.fileno(), lambda: self._read(peer, held))

    def _read(self, peer: socket.socket, held: bytearray) -> None:
        try:
            data = peer.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        held += data
        if not data or len(held) > LONGEST_REQUEST:
            self.drop(peer)
            return
        while (end := held.find(b"\n")) >= 0:
            line = bytes(held[:end])
            del held[: end + 1]
            self._answer(peer, line)

    def _answer(self, peer: socket.socket, line: bytes) -> None:
        def reply(answer: dict[str, Any]) -> None:
            try:
                peer.sendall(json.dumps(answer).encode() + b"\n")
            except OSError:  # gone, or does not read: it will ask again
                self.drop(peer)

        reply.peer = peer  # type: ignore[attr-defined]
        try:
            request = json.loads(line)
            self._handle(dict(request), reply)
        except (ValueError, KeyError, TypeError) as error:
            reply({"ok": False, "reason": f"the keeper does not understand this request: {error!r}."})
        except RefusedError as error:
            reply({"ok": False, "reason": str(error)})
        except OSError as error:
            reply({"ok": False, "reason": f"the keeper could not do it: {error}."})

    def drop(self, peer: socket.socket) -> None:
        """Close a connection."""
        if self.open.pop(peer.fileno(), None):
            self._loop.forget(peer.fileno())
            peer.close()
