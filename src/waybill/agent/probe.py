"""Asking the new version, and only it, whether it is well.

The request is sent up to its last line; before that line goes out, the kernel must say that the process which
accepted the connection is one of the new version's own. So nobody else's answer can pass for it.
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress
from typing import Any, NamedTuple

from waybill.agent import keeper_client, keeper_process, steering
from waybill.agent import owner as owner_of
from waybill.agent.keeper_sockets import HANDOVER
from waybill.core.errors import WaybillError
from waybill.drivers.model import Health, Probe

BODY = 1024
HEAD = 16384
WATCH = 0.1  # seconds between two looks at whether the version has given up
_RESET = b"\1\0\0\0\0\0\0\0"  # struct linger: close with a reset, so that the probe's port is free for the next one


class Outcome(NamedTuple):
    """Whether the version is well, and what was seen."""

    ok: bool
    reason: str
    evidence: str = ""


async def probe(command: Probe) -> Outcome:
    """Probe until the version answers well, gives up, or ``health.within`` has passed; the last failure is told."""
    owner = _owner(command.owner)
    asking = asyncio.ensure_future(_ask(command, owner))
    watching = asyncio.ensure_future(owner.given_up())
    try:
        await asyncio.wait({asking, watching}, return_when=asyncio.FIRST_COMPLETED)
        outcome = asking.result() if asking.done() else watching.result()
    finally:
        asking.cancel()
        watching.cancel()
    if not outcome.ok and not outcome.evidence:
        return outcome._replace(evidence=await owner.log_tail())
    return outcome


class _Anybody:
    """The owner of a probe that takes any answer."""

    async def source(self, asked: int) -> int:
        """The source port to probe from."""
        return asked

    async def members(self) -> list[int] | None:
        """Process ids of those whose answer counts; None when anybody's does."""
        return None

    async def given_up(self) -> Outcome:
        """Return when there is no use in waiting any longer."""
        await asyncio.Event().wait()
        raise AssertionError

    async def log_tail(self) -> str:
        """What the version wrote last."""
        return ""

    silence = ""


class _Unit(_Anybody):
    def __init__(self, unit: str) -> None:
        self._unit = unit

    async def members(self) -> list[int] | None:
        return await asyncio.to_thread(owner_of.processes, self._unit)


class _Kept(_Anybody):
    silence = HANDOVER

    def __init__(self, folder: str, release: str) -> None:
        self._folder = folder
        self._release = release

    async def _status(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        answer = await keeper_client.ask(self._folder, {"op": "status"}, 10)
        mine = (v for v in answer["versions"] if v["id"] == self._release and v["phase"] != "draining")
        return answer, next(mine, None)

    async def source(self, asked: int) -> int:
        return asked or int((await self._status())[0]["source"])

    async def members(self) -> list[int] | None:
        _, version = await self._status()
        return [version["pid"], *keeper_process.session(version["pid"])] if version and version["pid"] else []

    async def given_up(self) -> Outcome:
        while True:
            _, version = await self._status()
            if version is None:
                return Outcome(False, f"the keeper does not run {self._release}.")
            if version["phase"] == "failed" or version["advice"]:
                times = version["restarts"] + (version["phase"] == "failed")
                often = f"{times} times" if times > 1 else "once"
                reason = f"it ended {often}, last with {version['exit']}. {version['advice']}".strip()
                return Outcome(False, reason, version["evidence"])
            await asyncio.sleep(WATCH)

    async def log_tail(self) -> str:
        with suppress(WaybillError):
            _, version = await self._status()
            return str(version["evidence"]) if version else ""
        return ""


def _owner(owner: str) -> _Anybody:
    kind, _, rest = owner.partition(":")
    if kind == "keeper":
        folder, _, release = rest.rpartition(":")
        return _Kept(folder, release)
    return _Unit(rest) if kind == "unit" else _Anybody()


async def _ask(command: Probe, owner: _Anybody) -> Outcome:
    health = command.health
    limit = time.monotonic() + health.within
    outcome = Outcome(False, f"no answer within {health.within:g} s.")
    pause, tried = 0.01, False
    while (left := limit - time.monotonic()) > 0:
        seconds = min(left, health.timeout)
        source = await owner.source(command.source)
        try:
            with _socket(command.address, source) as opened:
                try:
                    async with asyncio.timeout(seconds):
                        outcome = await _attempt(command, health, owner, opened)
                except TimeoutError:
                    if seconds >= health.timeout or not tried:  # an attempt cut short says less than the one before
                        outcome = _silence(command, owner, opened, seconds)
        except OSError as error:
            outcome = Outcome(False, f"port {command.port} does not answer: {error.strerror or error}.")
        if outcome.ok and command.owner.startswith("unit:"):
            reason = owner_of.fault(command.port, command.owner.removeprefix("unit:"))
            outcome = Outcome(False, reason) if reason else outcome
        tried = True
        if outcome.ok:
            break
        await asyncio.sleep(max(0.0, min(pause, limit - time.monotonic())))
        pause = min(pause * 2, 0.5)
    return outcome


def _socket(address: str, source: int) -> socket.socket:
    opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    opened.setblocking(False)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if source:
        try:
            opened.bind((address, source))
        except OSError:
            opened.close()
            raise
    return opened


def _silence(command: Probe, owner: _Anybody, opened: socket.socket, seconds: float) -> Outcome:
    peer = _server_side(command, opened)
    if owner.silence and peer and not peer.inode:
        return Outcome(False, f"it accepted no connection within {seconds:.1f} s. {owner.silence}")
    return Outcome(False, f"no answer within {seconds:.1f} s from port {command.port}.")


def _server_side(command: Probe, opened: socket.socket) -> steering.Peer | None:
    with suppress(OSError):
        peer = steering.connection((command.address, command.port), opened.getsockname()[:2])
        return peer if peer and peer.state != steering.TCP_LISTEN else None
    return None


async def _attempt(command: Probe, health: Health, owner: _Anybody, opened: socket.socket) -> Outcome:
    loop = asyncio.get_running_loop()
    await loop.sock_connect(opened, (command.address, command.port))
    if health.path is not None:
        host = f"[{command.address}]" if ":" in command.address else command.address
        head = f"GET {health.path} HTTP/1.1\r\nHost: {host}:{command.port}\r\n"
        await loop.sock_sendall(opened, f"{head}User-Agent: waybill-probe\r\nConnection: close\r\n".encode())
    if not await _is_ours(command, owner, opened):
        return Outcome(False, f"another process than the new version's answers on port {command.port}.")
    if health.path is None:
        return Outcome(True, "it accepts connections.")
    await loop.sock_sendall(opened, b"\r\n")
    return await _response(loop, opened)


async def _is_ours(command: Probe, owner: _Anybody, opened: socket.socket) -> bool:
    """Wait until somebody has accepted the connection; whether that is one of the owner's processes."""
    if await owner.members() is None:
        return True
    pause = 0.001
    while not ((peer := _server_side(command, opened)) and peer.inode):
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.05)
    for _ in range(3):  # a worker may be forked, or the socket passed on, while we look
        members = await owner.members() or []
        for pid in members:
            try:
                if keeper_process.holds(pid, peer.inode) is not None:
                    return True
            except PermissionError:  # a process that may not be looked into: the sockets' order has to vouch for it
                return True
        await asyncio.sleep(0.02)
    return False


async def _response(loop: asyncio.AbstractEventLoop, opened: socket.socket) -> Outcome:
    data = b""
    while b"\r\n\r\n" not in data and len(data) < HEAD and (part := await loop.sock_recv(opened, 4096)):
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0]
    words = status.split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        return Outcome(False, "it does not answer in HTTP.", printable(data))
    if 200 <= int(words[1]) < 400:
        return Outcome(True, printable(status))
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(1):
            while len(body) < BODY and (part := await loop.sock_recv(opened, 4096)):
                body += part
    return Outcome(False, f"it answers {printable(status)}.", printable(status + b"\n" + body[:BODY]))


def printable(data: bytes) -> str:
    """Text that is safe to show on a terminal and a page: control characters become dots."""
    text = data[: BODY + 256].decode("utf-8", "replace")
    return "".join(char if char.isprintable() or char == "\n" else "" if char == "\r" else "." for char in text)
