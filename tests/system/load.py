"""Users of a service: some connect anew for each request, some keep their connection; each answer is noted."""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import NamedTuple, Self

SLOW = 1.0  # seconds; more counts as lost


class Answer(NamedTuple):
    """One request: when it was sent, on which kind of connection, who answered, or what went wrong."""

    at: float
    connected: float
    kept: bool
    version: str
    took: float
    fault: str = ""


class Load:
    """Runs from ``with`` to its end; about 200 requests a second for each user at most."""

    def __init__(self, address: str, port: int, *, users: int = 3) -> None:
        self._target = (address, port)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(kept,)) for kept in (False, True) for _ in range(users)
        ]
        self.answers: list[Answer] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def lost(self) -> list[Answer]:
        """Refused, reset, an error status, or later than a second."""
        return [answer for answer in self.answers if answer.fault or answer.took > SLOW]

    def versions(self, *, kept: bool, connected_after: float = 0.0, connected_before: float = float("inf")) -> set[str]:
        """Who answered on connections that were opened in this time."""
        return {
            answer.version
            for answer in self.answers
            if answer.kept == kept and connected_after < answer.connected < connected_before and not answer.fault
        }

    def _ask(self, kept: bool) -> None:
        connection, connected = None, 0.0
        while not self._stop.is_set():
            at = time.monotonic()
            if connection is None:
                connection, connected = http.client.HTTPConnection(*self._target, timeout=5), at
            version, fault, closed = "", "", True
            try:
                connection.request("GET", "/", headers={} if kept else {"Connection": "close"})
                response = connection.getresponse()
                body = response.read()
                closed = response.will_close
                version = json.loads(body)["version"]
                if response.status != 200:
                    fault = f"status {response.status}"
            except (OSError, http.client.HTTPException, ValueError) as error:
                fault = repr(error)
            self.answers.append(Answer(at, connected, kept, version, time.monotonic() - at, fault))
            if not kept or closed or fault:
                connection.close()
                connection = None
            time.sleep(0.005)
        if connection:
            connection.close()
