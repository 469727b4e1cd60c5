"""Which of several listening sockets on one port gets a new connection.

Every version of a service listens on its own socket; all are in one ``SO_REUSEPORT`` group. A classic BPF program
on the group returns the index of the socket that a connection goes to: the current version's for everybody, and the
new version's for this host's own probe, known by its source port. One ``setsockopt`` is a switch. Besides, a socket
that is not current carries a filter that drops every packet but the probe's, so that not even a wrong index could
show an unproven version to a user. No privileges are needed. Standard library only: the keeper imports this.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from array import array
from collections.abc import Iterator
from typing import NamedTuple

SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27
SO_ATTACH_REUSEPORT_CBPF = 51  # include/uapi/asm-generic/socket.h; the same on x86_64 and arm64
TCP_INFO_BACKLOG = 24  # offset of tcpi_unacked, which on a listener is the length of its accept queue
NET = 0xFFF00000  # SKF_NET_OFF: loads relative to the network header, wherever the packet's data pointer is
KEEP, DROP = 0xFFFFFFFF, 0
TCP_ESTABLISHED, TCP_LISTEN = 1, 10

_LD, _LDH, _LDB, _LDH_X, _TAX = 0x20, 0x28, 0x30, 0x48, 0x07
_AND, _LSH, _RSH, _JEQ, _JEQ_X, _RET = 0x54, 0x64, 0x74, 0x15, 0x1D, 0x06


def program(source: int, match: int, other: int) -> bytes:
    """Classic BPF that returns ``match`` for this host's own connection from port ``source``, else ``other``.

    "Own" means that the packet's source address is its destination address: nobody on the network can have the
    probe's port and address at once. IPv4 with options and IPv6 are read; IPv6 with extension headers is ``other``.

    Returns:
        Packed ``struct sock_filter`` instructions (linux/filter.h).
    """
    hit, miss = "hit", "miss"
    code: list[tuple[int, int, str | None, str | None]] = [
        (_LDB, NET, None, None),
        (_RSH, 4, None, None),
        (_JEQ, 6, "six", None),
        (_JEQ, 4, None, miss),
        (_LD, NET + 12, None, None),
        (_TAX, 0, None, None),
        (_LD, NET + 16, None, None),
        (_JEQ_X, 0, None, miss),
        (_LDB, NET, None, None),
        (_AND, 15, None, None),
        (_LSH, 2, None, None),
        (_TAX, 0, None, None),
        (_LDH_X, NET, None, None),
        (_JEQ, source, hit, miss),
    ]
    labels = {"six": len(code)}
    code += [(_LDB, NET + 6, None, None), (_JEQ, socket.IPPROTO_TCP, None, miss)]
    for word in range(4):
        code += [
            (_LD, NET + 8 + 4 * word, None, None),
            (_TAX, 0, None, None),
            (_LD, NET + 24 + 4 * word, None, None),
            (_JEQ_X, 0, None, miss),
        ]
    code += [(_LDH, NET + 40, None, None), (_JEQ, source, hit, miss)]
    labels |= {hit: len(code), miss: len(code) + 1}
    code += [(_RET, match, None, None), (_RET, other, None, None)]

    def jump(at: int, label: str | None) -> int:
        return 0 if label is None else labels[label] - at - 1

    return b"".join(
        struct.pack("=HBBI", op, jump(at, yes), jump(at, no), k) for at, (op, k, yes, no) in enumerate(code)
    )


def steer(member: socket.socket, source: int, probed: int, current: int) -> None:
    """Send the probe to index ``probed`` and everybody else to index ``current`` of the group of ``member``."""
    _attach(member, SO_ATTACH_REUSEPORT_CBPF, program(source, probed, current))


def close_to_users(listener: socket.socket, source: int) -> None:
    """Let only the probe through to this socket; everybody else's packets are dropped."""
    _attach(listener, SO_ATTACH_FILTER, program(source, KEEP, DROP))


def open_to_users(listener: socket.socket) -> None:
    """Undo ``close_to_users``; nothing happens where it was not closed."""
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def _attach(target: socket.socket, option: int, code: bytes) -> None:
    held = array("B", code)
    target.setsockopt(socket.SOL_SOCKET, option, struct.pack("@HP", len(code) // 8, held.buffer_info()[0]))


def backlog(listener: socket.socket) -> int:
    """How many connections wait in the accept queue."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BACKLOG + 4)
    return int(struct.unpack_from("=I", info, TCP_INFO_BACKLOG)[0])


def inode(opened: socket.socket | int) -> int:
    """The inode by which ``/proc`` and sock_diag name this socket."""
    return os.fstat(opened if isinstance(opened, int) else opened.fileno()).st_ino


def listener(bind: str, port: int) -> socket.socket:
    """A TCP socket bound for a ``SO_REUSEPORT`` group, not listening yet. ``::`` takes IPv4 as well.

    Raises:
        OSError: ``EADDRINUSE`` where something outside of the group has the port.
    """
    made = socket.socket(socket.AF_INET6 if ":" in bind else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if ":" in bind:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(bind != "::"))
        made.bind((bind, port))
    except BaseException:
        made.close()
        raise
    return made


def probe_port() -> socket.socket:
    """A source port kept for the probe: the kernel gives it to nobody while this socket is open.

    Bound without ``SO_REUSEADDR``, so that the port is nobody else's; the option is set afterwards, so that a probe
    that sets it, too, may share the port.
    """
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    held.bind(("", 0))
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return held


class Order(list[int]):
    """The members of a group by index: as sockets start to listen, and as the kernel moves them when one closes."""

    def join(self, member: int) -> int:
        """A socket started to listen: it takes the last index."""
        self.append(member)
        return len(self) - 1

    def leave(self, member: int) -> None:
        """A socket was closed: the last one takes its index (net/core/sock_reuseport.c)."""
        at = self.index(member)
        self[at] = self[-1]
        self.pop()

    def may_leave(self, member: int, current: int | None) -> bool:
        """Whether closing ``member`` can never, not even until the next ``steer``, misdirect a user.

        An index beyond the end makes the kernel choose by hash among all. So the current version must not be the
        one that moves, unless it is alone afterwards.
        """
        return member != current and (self[-1] != current or len(self) == 2)


class Peer(NamedTuple):
    """What the kernel says of one TCP socket.

    Attributes:
        state: ``TCP_ESTABLISHED``, ``TCP_LISTEN``…
        inode: 0 while a connection waits in an accept queue.
        queue: Bytes to read; on a listener the length of its accept queue.
        uid: Owner.
        address: Its local address.
    """

    state: int
    inode: int
    queue: int
    uid: int
    address: str


_REQUEST = struct.Struct("=IHHII BBBBI 2s2s16s16sI8s")
_ANSWER = struct.Struct("=BBBB 2s2s16s16sI8s IIIII")


def connection(local: tuple[str, int], remote: tuple[str, int]) -> Peer | None:
    """The server's side of one connection: exact, at once, however many connections there are (sock_diag(7)).

    Args:
        local: Address and port of the server.
        remote: Address and port of the client.
    """
    family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET
    found = list(_diag(family, 0x1, 0xFFFFFFFF, local, remote))
    return found[0] if found else None


def listeners(port: int) -> list[Peer]:
    """All sockets that listen on a port, on whatever address."""
    found: dict[int, Peer] = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for peer in _diag(family, 0x301, 1 << TCP_LISTEN, ("", port), ("", 0)):
            found[peer.inode] = peer
    return list(found.values())


def _diag(family: int, flags: int, states: int, local: tuple[str, int], remote: tuple[str, int]) -> Iterator[Peer]:
    def packed(address: str) -> bytes:
        return socket.inet_pton(family, address) if address else b""

    request = _REQUEST.pack(
        _REQUEST.size, 20, flags, 1, 0,
        family, socket.IPPROTO_TCP, 0, 0, states,
        local[1].to_bytes(2, "big"), remote[1].to_bytes(2, "big"), packed(local[0]), packed(remote[0]), 0, b"\xff" * 8,
    )  # fmt: skip
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as netlink:  # NETLINK_SOCK_DIAG
        netlink.settimeout(2)
        netlink.sendto(request, (0, 0))
        while True:
            data, at = netlink.recv(65536), 0
            while at + 16 <= len(data):
                length, kind = struct.unpack_from("=IH", data, at)
                if kind in {2, 3}:  # NLMSG_ERROR (nothing found), NLMSG_DONE
                    return
                answer = _ANSWER.unpack_from(data, at + 16)
                own, state, source, address, queue, uid, node = (answer[i] for i in (0, 1, 4, 6, 11, 13, 14))
                if int.from_bytes(source, "big") == local[1]:
                    text = socket.inet_ntop(own, address[:4] if own == socket.AF_INET else address)
                    yield Peer(state, node, queue, uid, text)
                at += (length + 3) & ~3
            if not flags & 0x300:  # no dump: one answer
                return
