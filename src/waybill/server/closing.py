"""Stops listening without cutting anybody off.

Closing a listening socket resets the connections that wait in its accept queue. So first the kernel is told to ignore
who wants to connect (a client asks again a second later, and meets the next server, or is refused as it should be);
what is on its way is still accepted; then the socket may be closed.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from array import array

QUEUE_TIME = 0.1
"""Seconds in which connections that are on their way are accepted."""
_SO_ATTACH_FILTER = 26
# What a filter of a TCP socket sees begins with the TCP header, whose byte 13 holds SYN (2) and ACK (16).
_NO_SYN = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))


def ignore_newcomers(listener: socket.socket) -> None:
    """Have the kernel drop attempts to connect; where it cannot (not Linux), nothing changes."""
    code = array("B", b"".join(struct.pack("=HBBI", *instruction) for instruction in _NO_SYN))
    with contextlib.suppress(OSError):
        program = struct.pack("@HP", len(_NO_SYN), code.buffer_info()[0])
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
