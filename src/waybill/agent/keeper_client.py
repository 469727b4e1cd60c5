"""Asking a keeper, and starting it where there is none."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import waybill
from waybill.agent.keeper import CONTROL, OPTIONS
from waybill.agent.keeper_process import PATH
from waybill.core.errors import UnavailableError

LONGEST_ANSWER = 1 << 20


async def ask(folder: str, request: dict[str, Any], timeout: float = 60.0, *, start: bool = True) -> dict[str, Any]:  # noqa: ASYNC109
    """The keeper's answer to one request.

    Requests may be repeated without harm, so a keeper that dies before it answers is started again and asked again.

    Args:
        folder: The keeper's folder.
        request: See ``keeper.Keeper.handle``.
        timeout: Seconds for all of it.
        start: Start a keeper where none serves.

    Raises:
        UnavailableError: No keeper answers in time, or none could be started.
    """
    limit = time.monotonic() + timeout
    while True:
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + limit - time.monotonic()):
                answer = await _once(folder, request)
                if answer is not None:
                    return answer
                if not start:
                    raise UnavailableError(f"no keeper serves in {folder}.")
                await _start(folder)
                await asyncio.sleep(0.01)
        except TimeoutError:
            raise UnavailableError(
                f"the keeper in {folder} did not answer {request.get('op')!r} within {timeout:g} s.",
                f"Its log is {folder}/service.log.",
            ) from None


async def _once(folder: str, request: dict[str, Any]) -> dict[str, Any] | None:
    try:
        handle = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:  # through the descriptor, since a socket's path may have 107 bytes only
        reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{handle}/{CONTROL}", limit=LONGEST_ANSWER)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    finally:
        os.close(handle)
    try:
        writer.write(json.dumps(request).encode() + b"\n")
        line = await reader.readline()
    except ConnectionError:
        return None
    finally:
        writer.close()
    answer: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
    return answer


async def _start(folder: str) -> None:
    root = Path(waybill.__file__).parent.parent
    process = await asyncio.create_subprocess_exec(
        sys.executable, *OPTIONS, "-m", "waybill.agent.keeper", folder,
        env={"PATH": PATH, "LANG": "C.UTF-8", "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    _, error = await process.communicate()
    if process.returncode:
        text = error.decode("utf-8", "replace").strip().splitlines()
        raise UnavailableError(f"the keeper in {folder} does not start: {text[-1] if text else process.returncode}")


async def upgrade(folder: str) -> dict[str, Any]:
    """Make the keeper in ``folder`` run the code that this process runs; its services notice nothing."""
    root = str(Path(waybill.__file__).parent.parent)
    return await ask(folder, {"op": "upgrade", "python": sys.executable, "root": root})
