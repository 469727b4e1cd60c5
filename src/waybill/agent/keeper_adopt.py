"""How a keeper begins: fresh, after a boot, after the death of the one before, or as its own successor.

A service that survived is recognised by process id, start time and boot id. Its listening socket is taken back with
pidfd_getfd(2); where the kernel does not allow that, the same version is started once more on a socket of its own,
and takes over as soon as it accepts connections. Standard library only: the keeper imports this.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from typing import Any

from waybill.agent import keeper_process as process
from waybill.agent import keeper_state as state
from waybill.agent import steering
from waybill.agent.keeper import Keeper, lock
from waybill.agent.keeper_loop import Control, Loop
from waybill.agent.keeper_state import Group, Version

CONTROL = "control"
INHERITED = "WAYBILL_KEEPER"
ACCEPTS_POLL = 0.05


def serve(folder: str, tell: int) -> None:
    """Keep what is in ``folder`` until nothing is left, or until another program takes this process over."""
    inherited = json.loads(os.environ.pop(INHERITED, "{}"))
    for fd in [inherited[name] for name in ("lock", "control", "reply") if name in inherited]:
        os.set_inheritable(fd, False)
    held = inherited.get("lock") or lock(folder)
    if held is None:
        wait_for_other(tell)
        return
    loop = Loop()
    keeper = Keeper(folder, loop)
    keeper.control = Control(loop, control_socket(inherited.get("control")), keeper.handle)
    sockets = {int(k): socket.socket(fileno=v) for k, v in inherited.get("sockets", {}).items()}
    for made in sockets.values():
        made.set_inheritable(False)
    restore(keeper, state.load(folder), sockets)
    if "reply" in inherited:
        peer = socket.socket(fileno=inherited["reply"])
        keeper.control.take(peer)
        with suppress(OSError):
            peer.sendall(b'{"ok": true}\n')
    elif tell >= 0:
        os.write(tell, b"ready")
        os.close(tell)
    keeper.rest()
    loop.run()
    if keeper.upgrade:
        become_successor(keeper, held)
    with suppress(FileNotFoundError):
        os.unlink(CONTROL)  # noqa: PTH108


def wait_for_other(tell: int) -> None:
    """Another keeper has the lock: report readiness once it answers."""
    for _ in range(200):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(CONTROL)
            except OSError:
                time.sleep(0.02)
                continue
        os.write(tell, b"ready")
        return
    os.write(tell, b"another keeper holds the lock and does not answer.\n")


def control_socket(inherited: int | None) -> socket.socket:
    """The listening unix socket in the working directory, readable for its owner only."""
    if inherited is not None:
        return socket.socket(fileno=inherited)
    made = socket.socket(socket.AF_UNIX)
    with suppress(FileNotFoundError):
        os.unlink(CONTROL)  # noqa: PTH108
    before = os.umask(0o177)
    made.bind(CONTROL)
    os.umask(before)
    made.listen(64)
    return made


def become_successor(keeper: Keeper, held: int) -> None:
    """Replace this program by the one that is installed now; on failure carry on as a fresh keeper would."""
    assert keeper.control and keeper.upgrade  # noqa: PT018, S101
    peer: socket.socket = keeper.upgrade.peer  # type: ignore[attr-defined]
    sockets = {n: s for group in keeper.groups.values() for n, s in group.sockets.items()}
    passed = {
        "lock": held,
        "control": keeper.control.listener.fileno(),
        "reply": peer.fileno(),
        "sockets": {number: made.fileno() for number, made in sockets.items()},
    }
    for fd in (held, keeper.control.listener.fileno(), peer.fileno(), *(s.fileno() for s in sockets.values())):
        os.set_inheritable(fd, True)
    environment = {**os.environ, INHERITED: json.dumps(passed)}
    os.execve(  # noqa: S606 - argument vector, no shell
        sys.executable,
        [sys.executable, "-S", "-s", "-P", "-m", "waybill.agent.keeper_adopt", keeper.folder],
        environment,
    )


def restore(keeper: Keeper, recorded: dict[str, Any], inherited: dict[int, socket.socket]) -> None:
    """Take up what the state says."""
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
        keeper.say(f"keeper {os.getpid()} took over {', '.join(v.id for v in survivors) or 'nothing'}")
    for address in list(keeper.groups):
        settle(keeper, address)
    for version in found:
        if version not in survivors and version.phase != "draining":
            start_again(keeper, version)
    for version in survivors:
        carry_on(keeper, version)


def carry_on(keeper: Keeper, version: Version) -> None:
    """Continue what the keeper before was doing with a version whose socket is at hand."""
    if version.phase == "draining":
        keeper.await_queue(version, 0.0, time.monotonic() + float(version.spec["drain"]))
    elif not version.pid and version.phase not in {"failed", "done"}:
        keeper.begin(version, 0.0)


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
        nodes = {int(number): node for number, node in entry["nodes"].items()}
        listening = {peer.inode for peer in steering.listeners(int(address.rpartition(" ")[2]))}
        group.order.extend(entry["order"])
        gone = [number for number in group.order if nodes[number] not in listening]
        group.certain = len(gone) <= 1 or len(group.order) - len(gone) <= 1
        for number in gone:
            group.order.leave(number)
        for number in list(group.order):
            group.nodes[number] = nodes[number]
            taken = inherited.get(number) or (
                process.take_socket(alive[number].pid, nodes[number]) if number in alive and alive[number].pid else None
            )
            if taken:
                group.sockets[number] = taken
        group.current = entry["current"] if entry["current"] in group.order else None
        if group.order:
            keeper.groups[address] = group


def settle(keeper: Keeper, address: str) -> None:
    """Set the group to what the state says; where that is not possible, replace the current version by itself."""
    group = keeper.groups[address]
    current = keeper.versions.get(group.current or 0)
    if current and (not group.certain or current.number not in group.sockets):
        keeper.say(f"the socket of {current.id} cannot be taken back: it is started once more and takes over")
        replace(keeper, current)
        return
    for number, made in group.sockets.items():
        if number != group.current:
            steering.close_to_users(made, keeper.port)
    keeper.apply(address)
    keeper.trim(address)


def start_again(keeper: Keeper, version: Version) -> None:
    """A version that did not survive: the same once more, on a new socket."""
    with suppress(Exception):
        successor = keeper.bring_up(version.spec, version.replaces)
        if version.phase == "live":
            keeper.make_current(successor)


def replace(keeper: Keeper, current: Version) -> None:
    """Start the current version once more, beside itself; it takes over when it accepts connections."""
    waiting = next((v for v in keeper.versions.values() if v.replaces == current.number), None)
    successor = waiting or keeper.bring_up(current.spec, current.number)
    take_over(keeper, successor, current)


def take_over(keeper: Keeper, successor: Version, current: Version) -> None:
    """Switch to the successor once it accepts connections."""
    if accepts(keeper, successor):
        keeper.make_current(successor)
        successor.replaces = 0
        keeper.drain(current, float(current.spec.get("drain", 30.0)))
        return
    keeper.loop.after(ACCEPTS_POLL, partial(take_over, keeper, successor, current))


def accepts(keeper: Keeper, version: Version) -> bool:
    """Whether a version accepts the probe's connection."""
    bind, _, port = str(version.address).rpartition(" ")
    host = bind if bind not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.settimeout(0.2)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset, so that nothing lingers
        try:
            probe.bind((host, keeper.port))
            probe.connect((host, int(port)))
        except OSError:
            return False
        time.sleep(0.01)
        peer = steering.connection((host, int(port)), (host, keeper.port))
        return bool(peer and peer.state == steering.TCP_ESTABLISHED and peer.inode)


if __name__ == "__main__":
    serve(sys.argv[1], -1)
