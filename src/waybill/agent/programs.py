"""Programs that the agent itself needs (git, the unpacker): argument vectors, a bare environment, nothing left behind.

A program that is cancelled or late is ended with its whole process group. Drivers' commands do not come here; they go
through ``runner``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import IO, Any

import msgspec

from waybill.core.errors import UnavailableError, WaybillError

OUTPUT_LIMIT = 64 * 1024 * 1024


class Account(msgspec.Struct, frozen=True):
    """An unprivileged user of this machine."""

    name: str
    uid: int
    gid: int


def account(name: str) -> Account:
    """The account of this name, made when it is missing.

    Raises:
        WaybillError: It cannot be made.
    """
    with contextlib.suppress(KeyError):
        entry = pwd.getpwnam(name)
        return Account(name, entry.pw_uid, entry.pw_gid)
    import subprocess

    made = subprocess.run(
        ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent",
         "--shell", "/usr/sbin/nologin", name],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise WaybillError(f"the account {name} could not be made: {made.stderr.strip()}.") from None
    return Account(name, entry.pw_uid, entry.pw_gid)


async def run(
    argv: Sequence[str],
    *,
    user: Account | None = None,
    stdin: bytes | AsyncIterator[bytes] | IO[bytes] = b"",
    stdout: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: str = "/",
    timeout: float = 600.0,  # noqa: ASYNC109 - ends the program, not only the wait
    title: str | None = None,
    hint: str = "",
) -> bytes:
    """What a program wrote, once it has ended well.

    Args:
        argv: Argument vector.
        user: Whom it runs as; None means as the agent.
        stdin: What it reads: bytes, chunks as they come, or an open file, which is closed here.
        stdout: An open file that takes its output instead; closed here.
        environment: In addition to the bare one.
        cwd: Its working directory.
        timeout: Seconds it may take.
        title: What failed, for the sentence; empty where its own last line is the sentence.
        hint: What to do when it fails.

    Raises:
        WaybillError: It ended badly; the last line that it wrote to its standard error is the reason.
        UnavailableError: It did not end in time.
    """
    identity: dict[str, Any] = {"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE if isinstance(stdin, (bytes, AsyncIterator)) else stdin,
            stdout=asyncio.subprocess.PIPE if stdout is None else stdout,
            stderr=asyncio.subprocess.PIPE,
            cwd=cwd,
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "HOME": "/nonexistent"}
            | dict(environment or {}),
            start_new_session=True,
            **identity,
        )
    finally:
        for mine in (stdin, stdout):
            if mine is not None and not isinstance(mine, (bytes, AsyncIterator)):
                mine.close()
    try:
        async with asyncio.timeout(timeout):
            output, complaint, fed = await asyncio.gather(
                _collect(process.stdout), _collect(process.stderr), _feed(process, stdin)
            )
            status = await process.wait()
    except TimeoutError:
        raise UnavailableError(f"{argv[0]} did not end within {timeout:g} s.", hint) from None
    finally:
        end(process)
        if process.returncode is None:
            await asyncio.shield(process.wait())
    if fed is not None:
        raise fed
    if status != 0:
        lines = complaint.decode(errors="replace").strip().splitlines() or [f"status {status}"]
        name = _title(argv) if title is None else title
        raise WaybillError(f"{name} failed: {lines[-1]}" if name else lines[-1], hint)
    return output


def end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of a program and of all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _title(argv: Sequence[str]) -> str:
    return next((f"{argv[0]} {part}" for part in argv[1:] if part.isalpha() or part == "index-pack"), argv[0])


async def _collect(stream: asyncio.StreamReader | None) -> bytes:
    if stream is None:
        return b""
    parts, size = [], 0
    while chunk := await stream.read(256 * 1024):
        size += len(chunk)
        if size <= OUTPUT_LIMIT:
            parts.append(chunk)
    return b"".join(parts)


async def _feed(
    process: asyncio.subprocess.Process, source: bytes | AsyncIterator[bytes] | IO[bytes]
) -> WaybillError | None:
    pipe = process.stdin
    if pipe is None:
        return None
    try:
        if isinstance(source, bytes):
            pipe.write(source)
            await pipe.drain()
        elif isinstance(source, AsyncIterator):
            async for chunk in source:
                pipe.write(chunk)
                await pipe.drain()
    except (BrokenPipeError, ConnectionResetError):
        pass  # it ended early; its status says why
    except WaybillError as error:
        end(process)
        return error
    finally:
        pipe.close()
    return None
