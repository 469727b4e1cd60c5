"""Performs a driver's commands on a test host: JSON on standard input, one JSON line for each command done.

It knows just enough to try the driver alone, with the agent's own functions where they matter.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import msgspec

from waybill.agent.drained import drained
from waybill.agent.owner import fault
from waybill.drivers.model import Command, Drained, Probe, Put, Run


def perform(command: Command) -> str:
    """What went wrong; empty when nothing did."""
    match command:
        case Put():
            temporary = Path(command.path + ".new")
            temporary.write_text(command.content)
            temporary.chmod(command.mode)
            os.sync()
            temporary.replace(command.path)
        case Run():
            done = subprocess.run(
                command.argv, input=command.stdin, capture_output=True, text=True, timeout=command.timeout
            )
            if done.returncode not in command.accept:
                return f"{' '.join(command.argv)}: {done.stdout}{done.stderr}"
        case Probe():
            return probe(command)
        case Drained():
            asyncio.run(drained(command.port, command.within))
    return ""


def probe(command: Probe) -> str:
    deadline = time.monotonic() + command.health.within
    while True:
        reason = fault(command.port, command.owner.removeprefix("unit:"))
        if not reason:
            try:
                urllib.request.urlopen(
                    f"http://127.0.0.1:{command.port}{command.health.path or '/'}", timeout=1
                ).close()
            except (OSError, urllib.error.URLError) as error:
                reason = str(error)
            else:
                return ""
        if time.monotonic() > deadline:
            return reason
        time.sleep(0.01)


for command in msgspec.json.decode(sys.stdin.buffer.read(), type=list[Command]):
    begun = time.monotonic()
    reason = perform(command)
    milliseconds = round((time.monotonic() - begun) * 1000, 1)
    print(json.dumps({"command": type(command).__name__, "reason": reason, "took": milliseconds}), flush=True)
    if reason:
        break
