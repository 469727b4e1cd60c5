"""The keeper: a small supervisor, one process for each service and environment on a host without systemd.

It makes the listening socket of each version and hands it over, starts versions again when they die, writes their log,
decides which version gets new connections (``steering``), and drains and ends the old one. The agent tells it what to
do over a unix socket; it outlives the agent. It may itself be killed at any moment: what it is about to do is in its
state first, services live on, and the next keeper takes their sockets back (``keeper_adopt``). So there is no signal
that it handles, and ending it ends no service.

``python -m waybill.agent.keeper FOLDER`` returns when a keeper serves in that folder. Standard library only.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
import traceback
from contextlib import suppress
from typing import Any

from waybill.agent import keeper_state as state
from waybill.agent.keeper_adopt import restore
from waybill.agent.keeper_log import Log
from waybill.agent.keeper_loop import Control, Loop
from waybill.agent.keeper_versions import LOG_SIZE, Keeper

CONTROL = "control"
INHERITED = "WAYBILL_KEEPER"
OPTIONS = ("-S", "-s", "-P")  # no site-packages, no user's packages, not the working directory: the standard library


def main(argv: list[str]) -> int:
    """Start a keeper in the background, unless one serves there; returns when requests are answered."""
    folder = os.path.abspath(argv[1])  # noqa: PTH100
    if inherited := os.environ.pop(INHERITED, ""):
        return _guarded(folder, -1, json.loads(inherited))
    os.makedirs(folder, mode=0o700, exist_ok=True)  # noqa: PTH103
    ready, tell = os.pipe()
    if os.fork():
        os.close(tell)
        told = os.read(ready, 4096)
        if told != b"ready":
            sys.stderr.write(told.decode() or "the keeper ended while it started.\n")
        return int(told != b"ready")
    os.close(ready)
    os.setsid()
    os.chdir(folder)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    return _guarded(folder, tell, {})


def _guarded(folder: str, tell: int, inherited: dict[str, Any]) -> int:
    try:
        serve(folder, tell, inherited)
    except BaseException as error:  # noqa: BLE001 - the last words go to the log and to whoever started it
        Log(f"{folder}/service.log", LOG_SIZE).write("keeper", traceback.format_exc().encode().splitlines())
        if tell >= 0:
            with suppress(OSError):
                os.write(tell, f"the keeper could not start: {error}\n".encode())
        return 1
    return 0


def serve(folder: str, tell: int, inherited: dict[str, Any]) -> None:
    """Keep what is in ``folder``, the working directory, until nothing is left.

    Args:
        folder: Absolute path.
        tell: Descriptor that is told ``ready``, or -1.
        inherited: Descriptors that the program before handed over, see ``succeed``.
    """
    lock = inherited["lock"] if inherited else _lock()
    if lock is None:
        _wait_for_other(tell)
        return
    loop = Loop()
    keeper = Keeper(folder, loop)
    loop.failed = keeper.say
    keeper.control = Control(loop, _control_socket(inherited.get("control")), keeper.handle)
    sockets = {int(number): socket.socket(fileno=fd) for number, fd in inherited.get("sockets", {}).items()}
    for fd in (lock, keeper.control.listener.fileno(), *(made.fileno() for made in sockets.values())):
        os.set_inheritable(fd, False)
    restore(keeper, state.load(folder), sockets)
    if tell >= 0:
        os.write(tell, b"ready")
        os.close(tell)
    if inherited:
        os.set_inheritable(inherited["reply"], False)
        asker = socket.socket(fileno=inherited["reply"])
        keeper.control.take(asker)
        with suppress(OSError):
            asker.sendall(b'{"ok": true}\n')
    keeper.rest()
    loop.run()
    while keeper.upgrade:
        succeed(keeper, lock)
        loop.run()
    with suppress(FileNotFoundError):
        os.unlink(CONTROL)  # noqa: PTH108


def succeed(keeper: Keeper, lock: int) -> None:
    """Replace this program by the one that is installed now, which goes on with the same process id and children.

    Returns only when that was not possible; this keeper goes on, then.
    """
    assert keeper.control and keeper.upgrade  # noqa: PT018, S101
    reply, request = keeper.upgrade
    peer = reply.peer  # type: ignore[attr-defined]
    sockets = {n: made for group in keeper.sockets.groups.values() for n, made in group.sockets.items()}
    passed = {
        "lock": lock,
        "control": keeper.control.listener.fileno(),
        "reply": peer.fileno(),
        "sockets": {number: made.fileno() for number, made in sockets.items()},
    }
    kept = [lock, passed["control"], passed["reply"], *(made.fileno() for made in sockets.values())]
    for fd in kept:
        os.set_inheritable(fd, True)
    python = str(request.get("python") or sys.executable)
    environment = {**os.environ, INHERITED: json.dumps(passed)}
    if root := request.get("root"):
        environment["PYTHONPATH"] = str(root)
    try:
        os.execve(python, [python, *OPTIONS, "-m", "waybill.agent.keeper", keeper.folder], environment)  # noqa: S606
    except OSError as error:
        for fd in kept:
            os.set_inheritable(fd, False)
        keeper.upgrade = None
        keeper.loop.running = True
        reply({"ok": False, "reason": f"the keeper cannot become {python}: {error.strerror}; it stays as it is."})


def _lock() -> int | None:
    handle = os.open("lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _wait_for_other(tell: int) -> None:
    for _ in range(200):
        with socket.socket(socket.AF_UNIX) as asked:
            try:
                asked.connect(CONTROL)
            except OSError:
                time.sleep(0.02)
                continue
        os.write(tell, b"ready")
        return
    os.write(tell, b"another keeper holds the lock and does not answer.\n")


def _control_socket(inherited: int | None) -> socket.socket:
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


if __name__ == "__main__":
    os._exit(main(sys.argv))
