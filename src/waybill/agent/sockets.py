"""The kernel's table of TCP sockets, as ``/proc/net/tcp`` and ``tcp6`` show it (proc(5))."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

import msgspec

PROC = Path("/proc")
ESTABLISHED, SYN_RECEIVED, CLOSE_WAIT, LISTEN = 0x01, 0x03, 0x08, 0x0A


class Socket(msgspec.Struct, frozen=True, kw_only=True):
    """One TCP socket.

    Attributes:
        address: Local address.
        port: Local port.
        peer_port: Remote port.
        state: As the kernel numbers them, include/net/tcp_states.h.
        inode: By which a process's file descriptor names it; 0 as long as nobody has accepted it.
    """

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    peer_port: int
    state: int
    inode: int


def sockets(port: int, proc: Path = PROC) -> list[Socket]:
    """All sockets with this local port."""
    found = []
    suffix = f":{port:04X}"
    for table in ("tcp", "tcp6"):
        file = proc / "net" / table
        if file.exists():  # a kernel without IPv6 has no tcp6
            with file.open() as rows:
                # A busy host has a hundred thousand rows: only those of the port are taken apart.
                found += [_socket(row.split()) for row in rows if suffix in row and row.split()[1].endswith(suffix)]
    return found


def listeners(port: int, proc: Path = PROC) -> list[Socket]:
    """The sockets that take new connections to this port."""
    return [socket for socket in sockets(port, proc) if socket.state == LISTEN]


def held_by(pid: int, proc: Path = PROC) -> Iterator[int]:
    """Inodes of the sockets that a process has open; none when it is gone or not ours to look at."""
    try:
        for descriptor in (proc / str(pid) / "fd").iterdir():
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                yield int(target[8:-1])
    except OSError:
        return


def _socket(columns: list[str]) -> Socket:
    address, _, port = columns[1].partition(":")
    # Each 32-bit word is printed in the byte order of the machine, which is little-endian wherever waybill runs.
    raw = b"".join(bytes.fromhex(address[start : start + 8])[::-1] for start in range(0, len(address), 8))
    local = ipaddress.ip_address(raw)
    if isinstance(local, ipaddress.IPv6Address) and local.ipv4_mapped:
        local = local.ipv4_mapped
    peer_port = int(columns[2].rpartition(":")[2], 16)
    return Socket(
        address=local, port=int(port, 16), peer_port=peer_port, state=int(columns[3], 16), inode=int(columns[9])
    )
