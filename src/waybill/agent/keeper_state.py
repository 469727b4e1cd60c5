"""What a keeper must know after its own death: written whole, synced and renamed before it acts.

Standard library only: the keeper imports this.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from waybill.agent import steering
from waybill.agent.keeper_process import boot_id

if TYPE_CHECKING:
    import socket

    from waybill.agent.keeper_log import Output
    from waybill.agent.keeper_loop import Reply, Timer

Phase = Literal["candidate", "live", "draining", "failed", "done"]
STATE = "state.json"


class Version:
    """One started version of a service; a release that is started twice is two of them.

    Attributes:
        number: Rises with every start; names it in the state.
        spec: The ``start`` request.
        phase: ``candidate`` until users are sent to it, ``live``, ``draining`` until its process has ended,
            ``failed`` when it gave up before it was live, ``done`` when it ended by itself and need not run again.
        pid: Process id, 0 when there is none.
        start: Its start time in clock ticks, see ``keeper_process.start_time``.
        node: Inode of its listening socket, 0 when it has none.
        replaces: Number of the version whose place it takes as soon as it accepts connections, or 0.
    """

    def __init__(self, number: int, spec: dict[str, Any]) -> None:
        self.number = number
        self.spec = spec
        self.phase: Phase = "candidate"
        self.pid = 0
        self.start = 0
        self.node = 0
        self.replaces = 0
        self.output: Output | None = None
        self.pidfd = -1
        self.fails = 0
        self.restarts = 0
        self.exit = ""
        self.born = time.monotonic()
        self.left = 0.0
        self.timer: Timer | None = None
        self.waiting: list[Reply] = []
        self.watchers: list[Any] = []

    @property
    def id(self) -> str:
        """The release."""
        return str(self.spec["id"])

    @property
    def address(self) -> str | None:
        """Bind address and port as one word; None without a port."""
        return f"{self.spec.get('bind', '0.0.0.0')} {self.spec['port']}" if self.spec.get("port") else None  # noqa: S104

    def record(self) -> dict[str, Any]:
        """What the state keeps."""
        names = ("number", "spec", "phase", "pid", "start", "node", "replaces")
        return {name: getattr(self, name) for name in names}


class Group:
    """The sockets of all versions on one address and port.

    Attributes:
        order: Numbers of the versions by index.
        sockets: Those that this keeper has a handle of.
        nodes: Inodes by number, also of versions that are gone but whose socket had to stay for the order's sake.
        current: Number that users are sent to.
        certain: Whether ``order`` is known to be the kernel's.
    """

    def __init__(self) -> None:
        self.order = steering.Order()
        self.sockets: dict[int, socket.socket] = {}
        self.nodes: dict[int, int] = {}
        self.current: int | None = None
        self.certain = True

    def record(self) -> dict[str, Any]:
        """What the state keeps."""
        return {"order": list(self.order), "nodes": {str(k): v for k, v in self.nodes.items()}, "current": self.current}


def save(folder: str, state: dict[str, Any]) -> None:
    """Replace the state file durably.

    Raises:
        OSError: The disk is full, or the folder is gone; the file is as it was.
    """
    temporary = f"{folder}/.{STATE}"
    try:
        with open(temporary, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(json.dumps({"v": 1, "boot": boot_id(), **state}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, f"{folder}/{STATE}")  # noqa: PTH105
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(folder: str) -> dict[str, Any]:
    """The state file; empty when there is none."""
    try:
        with open(f"{folder}/{STATE}") as file:  # noqa: PTH123
            found: dict[str, Any] = json.load(file)
            return found
    except FileNotFoundError:
        return {}
