"""Asking the new version, and only it, whether it is well.

The request is sent up to its last line; before that line goes out, the kernel must say that the process which
accepted the connection is one of the new version's own. So nobody else's answer can pass for it.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

from waybill.agent import keeper_client, keeper_process, steering
from waybill.agent import owner as owner_of
from waybill.agent.keeper import HANDOVER
from waybill.drivers.model import Health, Probe

BODY = 1024
HEAD = 16384
_RESET = b"\1\0\0\0\0\0\0\0"  # struct linger: close with a reset, so that the probe's port is free for the next one


class Outcome(NamedTuple):
    """Whether the version is well, and what was seen."""

    ok: bool
    reason: str
    evidence: str = ""


class _Owner(NamedTuple):
    source: int
    members: Callable[[], Iterable[int]] | None
    failure: Outcome | None = None


async def probe(command: Probe) -> Outcome:
    """Probe until the version answers well or ``health.within`` has passed; the last failure is told."""
    health = command.health
    limit = time.monotonic() + health.within
    outcome = Outcome(False, f"no answer within {health.within:g} s.")
    pause = 0.01
    while (left := limit - time.monotonic()) > 0:
        owner = await _owner(command)
        if owner.failure:
            return owner.failure
        try:
            async with asyncio.timeout(min(left, health.timeout)):
                outcome = await _attempt(command, health, owner)
        except TimeoutError:
            outcome = Outcome(False, f"no answer within {min(left, health.timeout):.1f} s from port {command.port}.")
            if command.owner.startswith("keeper:") and not _accepted(command, owner):
                outcome = Outcome(
                    False, f"the new version accepted no connection in {min(left, health.timeout):.1f} s. {HANDOVER}"
                )
        except OSError as error:
            outcome = Outcome(False, f"port {command.port} does not answer: {error.strerror or error}.")
        if outcome.ok and command.owner.startswith("unit:"):
            reason = owner_of.fault(command.port, command.owner.removeprefix("unit:"))
            outcome = Outcome(False, reason) if reason else outcome
        if outcome.ok:
            return outcome
        await asyncio.sleep(max(0.0, min(pause, limit - time.monotonic())))
        pause = min(pause * 2, 0.5)
    if command.owner.startswith("keeper:") and not outcome.evidence:
        evidence = await _log_tail(command)
        outcome = outcome._replace(evidence=evidence)
    return outcome


async def _owner(command: Probe) -> _Owner:
    kind, _, rest = command.owner.partition(":")
    if kind == "keeper":
        folder, _, release = rest.rpartition(":")
        answer = await keeper_client.ask(folder, {"op": "status"}, 10)
        version = next((v for v in answer["versions"] if v["id"] == release and v["phase"] != "draining"), None)
        if version is None:
            return _Owner(0, None, Outcome(False, f"the keeper does not run {release}."))
        if version["phase"] == "failed" or version["advice"]:
            reason = f"it ended {version['restarts'] + 1} times: {version['exit']}. {version['advice']}".strip()
            return _Owner(0, None, Outcome(False, reason, version["evidence"]))
        pid = int(version["pid"])
        return _Owner(command.source or int(answer["source"]), lambda: keeper_process.session(pid))
    if kind == "unit":
        return _Owner(command.source, lambda: owner_of.processes(rest))
    return _Owner(command.source, None)


async def _log_tail(command: Probe) -> str:
    folder, _, release = command.owner.partition(":")[2].rpartition(":")
    answer = await keeper_client.ask(folder, {"op": "status"}, 10)
    return next((str(v["evidence"]) for v in answer["versions"] if v["id"] == release), "")


def _accepted(command: Probe, owner: _Owner) -> bool:
    peer = steering.connection((command.address, command.port), (command.address, owner.source))
    return bool(peer and peer.inode)


async def _attempt(command: Probe, health: Health, owner: _Owner) -> Outcome:
    family = socket.AF_INET6 if ":" in command.address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as opened:
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if owner.source:
            opened.bind((command.address, owner.source))
        loop = asyncio.get_running_loop()
        await loop.sock_connect(opened, (command.address, command.port))
        if health.path is not None:
            host = f"[{command.address}]" if ":" in command.address else command.address
            head = f"GET {health.path} HTTP/1.1\r\nHost: {host}:{command.port}\r\n"
            await loop.sock_sendall(opened, f"{head}User-Agent: waybill-probe\r\nConnection: close\r\n".encode())
        if owner.members:
            stranger = await _await_owner(command, opened.getsockname()[1], owner.members)
            if stranger:
                return Outcome(False, stranger)
        elif health.path is None:
            return Outcome(True, "it accepts connections.")
        if health.path is None:
            return Outcome(True, "it accepts connections.")
        await loop.sock_sendall(opened, b"\r\n")
        return await _response(loop, opened)


async def _await_owner(command: Probe, source: int, members: Callable[[], Iterable[int]]) -> str:
    """Wait until somebody accepted; empty when it is one of the members, else a sentence."""
    pause = 0.001
    while True:
        peer = steering.connection((command.address, command.port), (command.address, source))
        if peer and peer.state != steering.TCP_LISTEN and peer.inode:
            if any(keeper_process.holds(pid, peer.inode) is not None for pid in members()):
                return ""
            peer = steering.connection((command.address, command.port), (command.address, source))
            if peer and peer.inode:
                return f"another process than the new version's answers on port {command.port}."
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.05)


async def _response(loop: asyncio.AbstractEventLoop, opened: socket.socket) -> Outcome:
    data = b""
    while b"\r\n\r\n" not in data and len(data) < HEAD:
        if not (part := await loop.sock_recv(opened, 4096)):
            break
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
