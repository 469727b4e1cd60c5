"""The listening sockets of a service, and who gets its users.

Standard library only: the keeper imports this.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection
from contextlib import suppress

from waybill.agent import keeper_process as process
from waybill.agent import steering
from waybill.agent.keeper_loop import RefusedError
from waybill.agent.keeper_state import Group, Version

BACKLOG = 4096
ANY = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound

HANDOVER = (
    "The process driver is for servers that take the socket they inherit (LISTEN_FDS=1, descriptor 3) and do not bind "
    "$PORT themselves: uvicorn --fd 3; gunicorn as it is; node server.listen({fd: 3}); Go "
    "net.FileListener(os.NewFile(3, \"\")); nginx with NGINX='3;' in its environment. Others need the systemd driver."
)


class Sockets:
    """The groups of all addresses that versions listen on; nearly always one.

    Args:
        versions: Those that there are, by number; a socket outlives its version where the order demands it.
    """

    def __init__(self, versions: Collection[int]) -> None:
        self.groups: dict[str, Group] = {}
        self._versions = versions
        self._source = steering.probe_port()

    @property
    def source(self) -> int:
        """The source port of probes."""
        return int(self._source.getsockname()[1])

    def of(self, version: Version) -> socket.socket | None:
        """The version's socket, if this keeper has it in hand."""
        group = self.groups.get(version.address or "")
        return group.sockets.get(version.number) if group else None

    def add(self, version: Version) -> None:
        """Make the version's socket: closed to users, and the program set before it listens.

        Raises:
            RefusedError: Somebody else listens on its port.
        """
        address = str(version.address)
        self.check_alone(address)
        bind, _, port = address.rpartition(" ")
        try:
            made = steering.listener(bind, int(port))
        except OSError as error:
            who = holders(steering.listeners(int(port)))
            raise RefusedError(f"cannot listen on {bind} port {port}: {error.strerror}. {who}".strip()) from error
        group = self.groups.setdefault(address, Group())
        version.node = steering.inode(made)
        steering.close_to_users(made, self.source)
        index = len(group.order)
        current = index if group.current is None else group.order.index(group.current)
        member = next(iter(group.sockets.values()), None if group.order else made)
        if member:
            steering.steer(member, self.source, index, current)
        made.listen(BACKLOG)
        if not member and group.certain:  # no old one is at hand, and a program of its own would keep it from joining
            steering.steer(made, self.source, index, current)
        group.order.join(version.number)
        group.sockets[version.number] = made
        group.nodes[version.number] = version.node

    def check_alone(self, address: str) -> None:
        """Make sure that only this keeper's sockets listen where its users connect to.

        Raises:
            RefusedError: Another one does; it could get users, or move the indices.
        """
        bind, _, port = address.rpartition(" ")
        ours = {node for group in self.groups.values() for node in group.nodes.values()}
        others = [peer for peer in steering.listeners(int(port)) if peer.inode not in ours]
        if any(bind in (peer.address, *ANY) for peer in others):
            raise RefusedError(f"something else listens on {bind} port {port}. {holders(others)} {HANDOVER}")

    def choose(self, version: Version) -> None:
        """Say that users of the version's address belong to it; ``apply`` makes it so."""
        self.groups[str(version.address)].current = version.number

    def apply(self, address: str) -> None:
        """Make the kernel do what the group says: who is open to users, and who gets them."""
        group = self.groups[address]
        if not group.sockets:
            return
        if group.current in group.sockets:
            steering.open_to_users(group.sockets[group.current])
        last = len(group.order) - 1
        current = last if group.current is None else group.order.index(group.current)
        newest = max((n for n in group.order if n in self._versions), default=group.order[last])
        steering.steer(next(iter(group.sockets.values())), self.source, group.order.index(newest), current)

    def waiting(self, version: Version) -> int:
        """Connections that wait to be accepted by a version which new ones do not go to."""
        group = self.groups.get(version.address or "")
        if not group or group.current == version.number:
            return 0  # users still come: there is nobody else to send them to
        if made := group.sockets.get(version.number):
            return steering.backlog(made)
        return sum(p.queue for p in steering.listeners(int(version.spec["port"])) if p.inode == version.node)

    def remove(self, version: Version) -> None:
        """The version is gone: close its socket now, or as soon as no user's connection could be misled by that."""
        group = self.groups.get(version.address or "")
        if not group or version.number not in group.order:
            return
        if group.current == version.number:
            group.current = None
        if made := group.sockets.get(version.number):
            steering.close_to_users(made, self.source)
        else:  # the kernel closed it with the process
            group.order.leave(version.number)
            group.nodes.pop(version.number, None)
        self.trim(str(version.address))

    def trim(self, address: str) -> None:
        """Close what sockets of versions that are gone may be closed now."""
        group = self.groups[address]
        gone = [number for number in group.order if number not in self._versions]
        others = len(group.order) - len(gone)
        for number in gone:
            # In an order that is not known for sure all go at once, when there is one version left.
            if number not in group.sockets:
                continue  # an escaped process holds it
            if not group.order.may_leave(number, group.current) if group.certain else others > 1:
                continue
            made = group.sockets.pop(number)
            with suppress(OSError):  # shutdown closes it also where a process that escaped still holds it
                made.shutdown(socket.SHUT_RDWR)
            made.close()
            group.nodes.pop(number, None)
            group.order.leave(number)
        if len(group.order) <= 1:
            group.certain = True
        if group.order:
            self.apply(address)
        else:
            del self.groups[address]


def holders(listeners: Collection[steering.Peer]) -> str:
    """Whose sockets these are, as far as this user may see; a sentence."""
    found = []
    for peer in listeners:
        for name in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208
            with suppress(OSError):
                if process.holds(int(name), peer.inode) is not None:
                    with open(f"/proc/{name}/comm") as file:  # noqa: PTH123
                        found.append(f"process {name} ({file.read().strip()})")
                    break
        else:
            found.append(f"a process of user id {peer.uid}")
    return f"It is {' and '.join(found)}." if found else ""
