"""The log of a service: one file, a time before each line, turned over by size.

A service writes to a named pipe that it has open for reading, too. So it never meets a broken pipe: when the keeper
dies, the pipe holds what is written until the next keeper reads on. Standard library only: the keeper imports this.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import deque
from contextlib import suppress
from typing import BinaryIO

KEEP = 5
LINE = 16384
_PIPE = 1 << 20


class Log:
    """An append-only file, and a short memory of its last lines.

    Args:
        path: Older files are ``path.1`` to ``path.4``.
        limit: Bytes after which the file is turned over.
    """

    def __init__(self, path: str, limit: int) -> None:
        self.path = path
        self.limit = limit
        self.lost = 0
        self._file: BinaryIO | None = None

    def write(self, label: str, lines: list[bytes]) -> None:
        """Append lines; a full disk loses them and says how many once there is room again."""
        head = f"{_stamp()} {label} ".encode()
        data = b"".join(head + line + b"\n" for line in lines)
        if self.lost:
            data = head + b"%d lines are lost, the disk was full\n" % self.lost + data
        try:
            if self._file is None:
                self._file = open(self.path, "ab", 0)  # noqa: PTH123, SIM115
                os.fchmod(self._file.fileno(), 0o640)
            if self._file.tell() + len(data) > self.limit and self._file.tell():
                self._turn()
            self._file.write(data)
            self.lost = 0
        except OSError:
            self.lost += len(lines)

    def reopen(self) -> None:
        """Close the file; the next line opens it anew, after somebody else has moved it away."""
        if self._file:
            self._file.close()
            self._file = None

    def _turn(self) -> None:
        for number in range(KEEP - 1, 1, -1):
            with suppress(FileNotFoundError):
                os.replace(f"{self.path}.{number - 1}", f"{self.path}.{number}")  # noqa: PTH105
        os.replace(self.path, f"{self.path}.1")  # noqa: PTH105
        self.reopen()
        self._file = open(self.path, "ab", 0)  # noqa: PTH123, SIM115
        os.fchmod(self._file.fileno(), 0o640)


class Output:
    """The named pipe of one version, read into the log line by line."""

    def __init__(self, path: str, label: str, log: Log, owner: int) -> None:
        self.path = path
        self.label = label
        self.tail: deque[bytes] = deque(maxlen=40)
        self._log = log
        self._rest = b""
        with suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        if os.geteuid() == 0:
            os.chown(path, owner, -1)  # programs reopen /dev/stdout by its path
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        with suppress(OSError):  # more than the user's share
            fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, _PIPE)

    def for_child(self) -> int:
        """A descriptor of its own (it blocks); the caller closes it."""
        return os.open(self.path, os.O_RDWR)

    def read(self) -> bool:
        """Move what is there into the log; says whether there may be more."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE:
            lines.append(self._rest)
            self._rest = b""
        self._keep(lines)
        return bool(data)

    def read_all(self) -> None:
        """Read what is there, at most a full pipe."""
        for _ in range(_PIPE // 4096):
            if not self.read():
                break

    def close(self) -> None:
        """Read to the end and remove the pipe."""
        self.read_all()
        if self._rest:
            self._keep([self._rest])
        os.close(self.fd)
        with suppress(FileNotFoundError):
            os.unlink(self.path)  # noqa: PTH108

    def _keep(self, lines: list[bytes]) -> None:
        pieces = [line[at : at + LINE] for line in lines for at in range(0, len(line) or 1, LINE)]
        if pieces:
            self.tail.extend(piece[:500] for piece in pieces)
            self._log.write(self.label, pieces)


def _stamp() -> str:
    now = time.time()
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03d}Z"
