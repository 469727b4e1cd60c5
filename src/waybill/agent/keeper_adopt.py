"""How a keeper takes up what the one before left: after a crash, after a boot, or as its own successor.

A service that survived is recognised by process id, start time and boot id. Its listening socket is taken back with
pidfd_getfd(2); where the kernel does not allow that, the same version is started once more on a socket of its own,
and takes over as soon as it accepts connections. Standard library only: the keeper imports this.
"""

from __future__ import annotations

import socket
import time
from functools import partial
from os import getpid
from typing import Any

from waybill.agent import keeper_process as process
from waybill.agent import steering
from waybill.agent.keeper_loop import RefusedError
from waybill.agent.keeper_state import Group, Version
from waybill.agent.keeper_versions import SETTLE, Keeper

ACCEPTS_POLL = 0.05
STEADY = 2.0  # seconds


def restore(keeper: Keeper, recorded: dict[str, Any], inherited: dict[int, socket.socket]) -> None:
    """Take up what the state says.

    Args:
        keeper: A fresh one.
        recorded: The state file.
        inherited: Listening sockets by number of their version, where this is the successor of a living keeper.
    """
    same_boot = recorded.get("boot") == process.boot_id()
    keeper.next = int(recorded.get("next", 1))
    keeper.current = recorded.get("current")
    found = [read_version(entry, same_boot=same_boot) for entry in recorded.get("versions", [])]
    survivors = [v for v in found if v.pid or v.number in inherited or v.phase in {"failed", "done"}]
    if same_boot:
        restore_groups(keeper, recorded, {version.number: version for version in survivors}, inherited)
    for version in survivors:
        keeper.versions[version.number] = version
        version.output = keeper.output(version)
        if version.pid:
            keeper.attend(version)
    if recorded:
        keeper.say(f"keeper {getpid()} took over {', '.join(v.id for v in survivors) or 'nothing'}")
    for address in list(keeper.sockets.groups):
        settle(keeper, address)
    for version in found:
        if version not in survivors and version.phase != "draining":
            start_again(keeper, version)
    for version in survivors:
        carry_on(keeper, version)
    keeper.save_if_possible()


def read_version(entry: dict[str, Any], *, same_boot: bool) -> Version:
    """A recorded version, with its process id only if that process lives."""
    version = Version(int(entry["number"]), entry["spec"])
    for name in ("phase", "pid", "start", "node", "replaces"):
        setattr(version, name, entry[name])
    if not (same_boot and version.pid and process.start_time(version.pid) == version.start):
        version.pid = 0
    return version


def restore_groups(
    keeper: Keeper, recorded: dict[str, Any], alive: dict[int, Version], inherited: dict[int, socket.socket]
) -> None:
    """Find the sockets again, and the order that the kernel has them in now."""
    for address, entry in recorded.get("groups", {}).items():
        group = Group()
        nodes = {int(number): int(node) for number, node in entry["nodes"].items()}
        listening = {peer.inode for peer in steering.listeners(int(address.rpartition(" ")[2]))}
        group.order.extend(entry["order"])
        gone = [number for number in group.order if nodes[number] not in listening]
        # In which order several sockets of a dead keeper were closed is not known; of one, or of all but one, it is.
        group.certain = len(gone) <= 1 or len(group.order) - len(gone) <= 1
        for number in gone:
            group.order.leave(number)
        for number in group.order:
            group.nodes[number] = nodes[number]
            taken = inherited.get(number)
            if taken is None and number in alive and alive[number].pid:
                taken = process.take_socket(alive[number].pid, nodes[number])
            if taken:
                group.sockets[number] = taken
        if keeper.current in group.order:
            group.current = keeper.current
        elif entry["current"] in group.order:
            group.current = entry["current"]
        if group.order:
            keeper.sockets.groups[address] = group


def settle(keeper: Keeper, address: str) -> None:
    """Make the kernel do what the state says; where that cannot be, the current version replaces itself."""
    group = keeper.sockets.groups[address]
    current = keeper.versions.get(group.current or 0)
    if current and current.phase == "live" and (not group.certain or current.number not in group.sockets):
        keeper.say(f"the socket of {current.id} cannot be taken back: it is started once more, and takes over")
        replace(keeper, current)
        return
    for number, made in group.sockets.items():
        if number != group.current:
            steering.close_to_users(made, keeper.sockets.source)
    keeper.sockets.apply(address)
    keeper.sockets.trim(address)


def start_again(keeper: Keeper, version: Version) -> None:
    """A version that did not survive: the same once more, on a new socket."""
    keeper.versions.pop(version.number, None)
    try:
        successor = keeper.bring_up(dict(version.spec), version.replaces if version.replaces in keeper.versions else 0)
        if version.phase == "live":
            keeper.make_current(successor)
    except (OSError, RefusedError) as error:
        keeper.say(f"cannot start {version.id} again: {error}")


def carry_on(keeper: Keeper, version: Version) -> None:
    """Continue what the keeper before was doing with a version that is there."""
    if version.phase == "draining":
        if version.pid:
            keeper.await_queue(version, time.monotonic() + SETTLE)
        else:
            keeper.finish(version)
    elif not version.pid and version.phase not in {"failed", "done"}:
        keeper.begin_again(version, 0.0)


def replace(keeper: Keeper, current: Version) -> None:
    """Start the current version once more, beside itself; it takes over when it accepts connections."""
    waiting = next((v for v in keeper.versions.values() if v.replaces == current.number), None)
    try:
        take_over(keeper, waiting or keeper.bring_up(dict(current.spec), current.number), current)
    except (OSError, RefusedError) as error:
        keeper.say(f"cannot start {current.id} once more, it goes on as it is: {error}")


def take_over(keeper: Keeper, successor: Version, current: Version) -> None:
    """Switch to the successor once it accepts connections, unless something newer serves by then."""
    if successor.number not in keeper.versions or successor.phase != "candidate":
        return
    if keeper.current != current.number:
        keeper.drain(successor, 0.0)
    elif ready(keeper, successor):
        keeper.make_current(successor)
        successor.replaces = 0
        keeper.drain(current, float(current.spec.get("drain", 30.0)))
    else:
        keeper.loop.after(ACCEPTS_POLL, partial(take_over, keeper, successor, current))


def ready(keeper: Keeper, successor: Version) -> bool:
    """Whether it accepts connections; where the order is not known, so that none can be sent to it, whether it runs."""
    group = keeper.sockets.groups[str(successor.address)]
    if group.certain:
        return accepts(keeper, successor)
    return bool(successor.pid) and time.monotonic() - successor.born > STEADY


def accepts(keeper: Keeper, version: Version) -> bool:
    """Whether a version accepts the probe's connection."""
    bind, _, port = str(version.address).rpartition(" ")
    host = bind if bind not in {"0.0.0.0", "::"} else "127.0.0.1"  # noqa: S104 - compared, not bound
    source = keeper.sockets.source
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as asked:
        asked.settimeout(0.2)
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset: nothing lingers
        try:
            asked.bind((host, source))
            asked.connect((host, int(port)))
        except OSError:
            return False
        time.sleep(0.01)
        peer = steering.connection((host, int(port)), (host, source))
        return bool(peer and peer.state == steering.TCP_ESTABLISHED and peer.inode)
