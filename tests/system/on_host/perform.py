"""Performs a driver's commands on a test host as the agent does: JSON on standard input, one JSON line for each."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import msgspec

from waybill.agent.runner import perform
from waybill.drivers.model import Command


async def main() -> None:
    for command in msgspec.json.decode(sys.stdin.buffer.read(), type=list[Command]):
        begun = time.monotonic()
        result = await perform(command)
        row = {
            "command": type(command).__name__,
            "reason": "" if result.ok else f"{result.reason} {result.output}",
            "took": round((time.monotonic() - begun) * 1000, 1),
        }
        print(json.dumps(row), flush=True)
        if not result.ok:
            break


asyncio.run(main())
