"""The one place where commands act on a host."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from waybill.agent import keeper_client, keeper_process
from waybill.agent.drained import drained
from waybill.agent.probe import probe
from waybill.core.errors import WaybillError
from waybill.drivers.model import Call, Command, Drained, Probe, Put, Run

TAIL = 4096
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
_LINE = 8192
OnLine = Callable[[str], None]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a command.

    Attributes:
        ok: Whether it did what it should.
        output: The end of what it wrote, or what a probe saw; at most 4 KiB, printable.
        reason: One sentence, when it failed.
    """

    ok: bool
    output: str = ""
    reason: str = ""


async def perform(command: Command, on_line: OnLine | None = None) -> Result:
    """Perform one command. Failures are results, not exceptions; a cancelled command leaves no process behind.

    Args:
        command: What to do.
        on_line: Called with each line that a ``Run`` writes, as it is written.
    """
    try:
        match command:
            case Run():
                return await _run(command, on_line)
            case Put():
                await asyncio.to_thread(_put, command)
                return Result(ok=True)
            case Call():
                answer = await keeper_client.ask(command.folder, command.request, command.timeout)
                return Result(
                    ok=bool(answer.get("ok")),
                    output=str(answer.get("evidence", ""))[-TAIL:],
                    reason=str(answer.get("reason", "")),
                )
            case Probe():
                ok, reason, evidence = await probe(command)
                return Result(ok=ok, output=evidence[:TAIL], reason="" if ok else reason)
            case Drained():
                left = await drained(command.port, command.within)
                return Result(ok=True, output=f"{left} connections were left." if left else "")
    except WaybillError as error:
        return Result(ok=False, reason=str(error))
    except OSError as error:
        return Result(ok=False, reason=f"{_what(command)}: {error.strerror or error}.")


def _what(command: Command) -> str:
    match command:
        case Run():
            return f"cannot run {command.argv[0]}"
        case Put():
            return f"cannot write {command.path}"
        case Call():
            return f"cannot reach the keeper of {command.key}"
        case Probe():
            return f"cannot probe port {command.port}"
        case Drained():
            return f"cannot count the connections to port {command.port}"


def environment_of(user: str | None) -> dict[str, str]:
    """The few variables that a command of this user (None: the agent's own) begins with."""
    entry = pwd.getpwnam(user) if user else pwd.getpwuid(os.geteuid())
    return {
        "PATH": keeper_process.PATH,
        "LANG": "C.UTF-8",
        "HOME": entry.pw_dir,
        "USER": entry.pw_name,
        "LOGNAME": entry.pw_name,
    }


async def _run(command: Run, on_line: OnLine | None) -> Result:
    try:
        environment = {**environment_of(command.user), **command.environment}
        switch = _switch_user(command.user)
    except (KeyError, PermissionError):
        return Result(ok=False, reason=f"{command.argv[0]} cannot run as {command.user}: no such user, or not root.")
    if command.cwd and not await asyncio.to_thread(os.path.isdir, command.cwd):
        return Result(ok=False, reason=f"cannot run {command.argv[0]} in {command.cwd}: there is no such folder.")
    reader, writer = os.pipe()  # our own: asyncio's would wait for children that the program left in the background
    try:
        process = await asyncio.create_subprocess_exec(
            *command.argv,
            cwd=command.cwd or "/",
            env=environment,
            stdin=asyncio.subprocess.PIPE if command.stdin else asyncio.subprocess.DEVNULL,
            stdout=writer,
            stderr=writer,
            start_new_session=True,
            umask=0o022,
            **switch,
        )
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    tail = _Tail(on_line)
    reading = asyncio.ensure_future(_read(reader, tail))
    try:
        async with asyncio.timeout(command.timeout):
            await _feed(process, command.stdin)
            status = await process.wait()
    except TimeoutError:
        await _end(process)
        return Result(ok=False, output=tail.text(), reason=f"{command.argv[0]} took longer than {command.timeout:g} s.")
    except asyncio.CancelledError:
        await asyncio.shield(_end(process))
        raise
    finally:
        _signal(process.pid, signal.SIGKILL)  # what it left in the background
        await asyncio.wait({reading}, timeout=1)
        reading.cancel()
    if status not in command.accept:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return Result(ok=False, output=tail.text(), reason=f"{command.argv[0]} {how}.")
    return Result(ok=True, output=tail.text())


def _switch_user(user: str | None) -> dict[str, Any]:
    if user is None or pwd.getpwnam(user).pw_uid == os.geteuid():
        return {}
    if os.geteuid() != 0:
        raise PermissionError(user)
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": os.getgrouplist(user, entry.pw_gid)}


class _Tail:
    """The last 4 KiB, whatever is poured in; complete lines go to the callback."""

    def __init__(self, on_line: OnLine | None) -> None:
        self._held = bytearray()
        self._line = bytearray()
        self._on_line = on_line

    def add(self, data: bytes) -> None:
        self._held += data
        del self._held[:-TAIL]
        if self._on_line is None:
            return
        self._line += data
        *lines, rest = self._line.split(b"\n")
        if len(rest) > _LINE:
            lines.append(rest)
            rest = bytearray()
        for line in lines:
            self._on_line(line[:_LINE].decode("utf-8", "replace"))
        self._line = rest

    def text(self) -> str:
        return self._held.decode("utf-8", "replace")


async def _feed(process: asyncio.subprocess.Process, text: str) -> None:
    if process.stdin:
        with suppress(ConnectionError):
            process.stdin.write(text.encode())
            await process.stdin.drain()
        process.stdin.close()


async def _read(pipe: int, tail: _Tail) -> None:
    stream = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(pipe, "rb", buffering=0)
    )
    try:
        while data := await stream.read(65536):
            tail.add(data)
    finally:
        transport.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    _signal(process.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(GRACE):
            await process.wait()
    except TimeoutError:
        _signal(process.pid, signal.SIGKILL)
        await process.wait()
    _signal(process.pid, signal.SIGKILL)


def _signal(leader: int, number: int) -> None:
    keeper_process.signal_all(leader, keeper_process.start_time(leader) or -1, number)


def _holds(path: Path, command: Put) -> bool:
    try:
        return path.stat().st_mode & 0o7777 == command.mode and path.read_bytes() == command.content.encode()
    except FileNotFoundError:
        return False


def _put(command: Put) -> None:
    path = Path(command.path)
    if _holds(path, command):
        return  # what was live starts after a reboot on a full disk too
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(command.content)
            os.fchmod(file.fileno(), command.mode)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
