"""How long and how much the server listens before it knows what is asked.

uvicorn waits without end for the head of a request, and takes a head of any size: one sender that dribbles header
lines would hold a connection for ever. This protocol gives the head ``HEAD_TIME`` seconds and ``HEAD_LIMIT`` bytes.
"""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIME = 10.0
"""Seconds from the connection, or from the first byte of a later request, to the end of the head."""
HEAD_LIMIT = 65536
"""Bytes of request line and headers, give or take one read."""
LAST_CALL = 0.5
"""Seconds that a connection without a request is kept when the server stops: its request may be on its way."""


class PatientProtocol(HttpToolsProtocol):
    """For ``uvicorn.Config(http=PatientProtocol)``."""

    _deadline: asyncio.TimerHandle | None = None
    _head = 0
    _ending = False

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        if peer is not None and peer.family in (socket.AF_INET, socket.AF_INET6):
            # asyncio does this only for listeners that it made itself; without it an answer in two writes takes 40 ms.
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._heard()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes between requests are the begin of the next one."""
        if self._deadline is None and self._idle():
            self._wait()
        super().data_received(data)
        if self._deadline is not None:  # the head goes on
            self._head += len(data)
            if self._head > HEAD_LIMIT:
                self._refuse(431, "the head of the request is too large.")

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._heard()
        super().on_headers_complete()
        if self._ending and self.cycle is not None:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Answer what was asked, and what is asked in the next moment; uvicorn cuts off the latter."""
        self._ending = True
        if self._idle():
            self.loop.call_later(LAST_CALL, self._last_call)
        else:
            super().shutdown()

    def _last_call(self) -> None:
        if self._idle():
            self.transport.close()

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(HEAD_TIME, self._late)

    def _heard(self) -> None:
        self._head = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._refuse(408, "the head of the request did not come in time.")

    def _refuse(self, status: int, detail: str) -> None:
        self._heard()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            told = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
            body = msgspec.json.encode(told)
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nconnection: close\r\n"
            head += f"content-type: application/problem+json\r\ncontent-length: {len(body)}\r\n\r\n"
            self.transport.write(head.encode() + body)
        self.transport.close()
