"""Tells whether the answer to a probe came from the version that was asked.

Another program may sit on the slot: one that was there before, or one of a local user who hopes to be sent the users.
The kernel says which socket listens there and which process has it; systemd puts each process into its unit's group.
"""

from __future__ import annotations

from pathlib import Path

from waybill.agent.sockets import PROC, held_by, listeners

SLICE = "/system.slice"
"""Where the units of services are. Users' own units, whose names they choose, are elsewhere."""


def fault(port: int, unit: str, proc: Path = PROC) -> str:
    """Why users must not be sent to this port on behalf of the unit, as a sentence; empty when they may.

    Args:
        port: The slot of the version.
        unit: Its systemd unit.
        proc: For tests.
    """
    listening = listeners(port, proc)
    if not listening:
        return f"nothing listens on port {port}."
    own = {inode for pid in processes(unit, proc) for inode in held_by(pid, proc)}
    if any(socket.inode not in own for socket in listening):
        return f"port {port} is answered by a program that is not part of {unit}."
    if all(socket.address.is_loopback for socket in listening):
        return (
            f"the service listens on {listening[0].address} alone, where no user reaches it; "
            "have it listen on $PORT of all addresses (0.0.0.0 or ::), which waybill shields from outside."
        )
    return ""


def processes(unit: str, proc: Path = PROC) -> list[int]:
    """The processes of a unit, those in control groups below its own included."""
    group = f"{SLICE}/{unit}"
    found = []
    for folder in proc.iterdir():
        if folder.name.isdigit():
            try:
                lines = (folder / "cgroup").read_text().splitlines()
            except OSError:  # it ended meanwhile
                continue
            paths = [line.split(":", 2)[2] for line in lines if line.startswith("0::") or ":name=systemd:" in line]
            if any(path == group or path.startswith(group + "/") for path in paths):
                found.append(int(folder.name))
    return found
