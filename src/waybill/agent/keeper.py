"""The keeper: a small supervisor, one process for each service and environment on a host without systemd.

It makes the listening socket of each version and hands it over, starts versions again when they die, writes their log,
decides which version gets new connections (``steering``), and drains and ends the old one. The agent tells it what to
do over a unix socket; it outlives the agent. It may itself be killed at any moment: what it is about to do is in its
state first, services live on, and the next keeper takes their sockets back (``keeper_adopt``).

``python -m waybill.agent.keeper FOLDER`` returns when a keeper serves in that folder. Standard library only.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from typing import Any

from waybill.agent import keeper_process as process
from waybill.agent import keeper_state as state
from waybill.agent import steering
from waybill.agent.keeper_log import Log, Output
from waybill.agent.keeper_loop import Control, Loop, RefusedError, Reply
from waybill.agent.keeper_state import Group, Version

FIRST_DELAY, LONGEST_DELAY = 0.1, 30.0  # seconds before a crashed version starts again
HEALTHY = 10.0  # seconds after which a run counts as good, so that the next crash restarts at once again
TRIES = 3  # crashes of a version that was never live before it counts as failed
SETTLE = 1.0  # seconds after a switch in which half-open connections may still finish at the old version
UNUSED_GRACE = 5.0  # seconds that a version which never had a user gets to end
IDLE = 5.0  # seconds without any version after which the keeper ends
POLL = 0.02
BACKLOG = 4096

HANDOVER = (
    "The process driver is for servers that take the socket they inherit (LISTEN_FDS=1, descriptor 3) and do not bind "
    "$PORT themselves: uvicorn --fd 3; gunicorn as it is; node server.listen({fd: 3}); Go "
    "net.FileListener(os.NewFile(3, \"\")); nginx with NGINX='3;' in its environment. Others need the systemd driver."
)


class Keeper:
    """All that runs of one service in one environment.

    Args:
        folder: Its own folder, which is the working directory, too.
        loop: The event loop.
    """

    def __init__(self, folder: str, loop: Loop) -> None:
        self.folder = folder
        self.loop = loop
        self.versions: dict[int, Version] = {}
        self.groups: dict[str, Group] = {}
        self.current: int | None = None
        self.next = 1
        self.log = Log(f"{folder}/service.log", 10 << 20)
        self.source = steering.probe_port()
        self.control: Control | None = None
        self.upgrade: Reply | None = None

    @property
    def port(self) -> int:
        """The source port of probes."""
        return int(self.source.getsockname()[1])

    def handle(self, request: dict[str, Any], reply: Reply) -> None:
        """Fulfil one request; the answer may come later."""
        operations = {
            "start": self.start,
            "steady": self.steady,
            "switch": self.switch,
            "stop": self.stop,
            "status": self.status,
            "reopen": self.reopen,
            "upgrade": self.renew_code,
        }
        operation = operations.get(str(request.get("op")))
        if operation is None:
            raise RefusedError(f"the keeper knows no request {request.get('op')!r}; it knows {', '.join(operations)}.")
        operation(request, reply)

    # requests

    def start(self, request: dict[str, Any], reply: Reply) -> None:
        """Bring up a release where only the probe reaches it; nothing happens when it is up already."""
        spec = {key: value for key, value in request.items() if key != "op"}
        version = self.find(str(spec["id"]))
        if version and version.phase == "failed":
            self.finish(version)
            version = None
        if version is None:
            self.log.limit = int(spec.get("log_size") or self.log.limit)
            version = self.bring_up(spec)
        reply({"ok": True, "id": version.id, "pid": version.pid, "source": self.port})

    def bring_up(self, spec: dict[str, Any], replaces: int = 0) -> Version:
        """Make the socket and the process of a new version.

        Raises:
            RefusedError: Somebody else listens on its port.
            OSError: The state cannot be written; nothing has started then.
        """
        version = Version(self.next, spec)
        version.replaces = replaces
        if version.address:
            self.listen(version)
        version.output = self.output(version)
        self.versions[version.number] = version
        self.next += 1
        try:
            self.begin(version, 0.0)
        except OSError:
            self.finish(version)
            raise
        return version

    def switch(self, request: dict[str, Any], reply: Reply) -> None:
        """Send new connections to a release; nothing happens when they go there already."""
        version = self.required(request)
        if version.phase == "failed" or (version.number != self.current and not version.pid):
            raise RefusedError(f"{version.id} does not run: {version.exit or 'it has not started'}. {advice(version)}")
        self.make_current(version)
        reply({"ok": True, "id": version.id})

    def make_current(self, version: Version) -> None:
        """Switch: recorded first, then done."""
        began = time.monotonic()
        if version.address:
            self.alone(version.address)
        previous = self.versions.get(self.current or 0)
        self.current = version.number
        version.phase = "live"
        if version.address:
            self.groups[version.address].current = version.number
        self.save()
        if version.address:
            self.apply(version.address)
        if previous and previous is not version:
            previous.left = time.monotonic()
            self.say(f"{version.id} serves, after {previous.id} ({(time.monotonic() - began) * 1000:.1f} ms)")
        elif not previous:
            self.say(f"{version.id} serves")

    def stop(self, request: dict[str, Any], reply: Reply) -> None:
        """Drain and end a release, and answer when it has ended; one that is not there has ended."""
        found = [v for v in self.versions.values() if v.id == str(request["id"])]
        version = next((v for v in found if v.phase != "draining"), found[0] if found else None)
        if version is None:
            reply({"ok": True, "id": str(request["id"])})
            return
        version.waiting.append(reply)
        if version.phase != "draining":
            self.drain(version, float(request.get("drain", version.spec.get("drain", 30.0))))

    def steady(self, request: dict[str, Any], reply: Reply) -> None:
        """Answer whether a release runs for ``seconds`` without ending; what a version without a check is asked."""
        version = self.required(request)

        def died() -> None:
            timer.cancel()
            reply(
                {
                    "ok": False,
                    "reason": f"{version.id} ended: {version.exit}. {advice(version)}".strip(),
                    "evidence": evidence(version),
                }
            )

        def lived() -> None:
            version.watchers.remove(died)
            reply({"ok": True, "id": version.id})

        timer = self.loop.after(float(request.get("seconds", 1.0)), lived)
        if version.pid and version.exit == "":
            version.watchers.append(died)
        else:
            died()

    def status(self, request: dict[str, Any], reply: Reply) -> None:  # noqa: ARG002
        """All versions, oldest first."""
        current = self.versions.get(self.current or 0)
        reply(
            {
                "ok": True,
                "pid": os.getpid(),
                "current": current.id if current else None,
                "source": self.port,
                "log": self.log.path,
                "versions": [
                    {
                        "id": v.id,
                        "phase": v.phase,
                        "state": "running"
                        if v.pid and time.monotonic() >= v.born
                        else "restarting"
                        if v.pid
                        else "ended",
                        "pid": v.pid,
                        "restarts": v.restarts,
                        "exit": v.exit,
                        "advice": advice(v),
                        "evidence": evidence(v),
                    }
                    for v in self.versions.values()
                ],
            }
        )

    def reopen(self, request: dict[str, Any], reply: Reply) -> None:  # noqa: ARG002
        """Open the log anew, after it was moved away."""
        self.log.reopen()
        reply({"ok": True})

    def renew_code(self, request: dict[str, Any], reply: Reply) -> None:  # noqa: ARG002
        """Become the keeper that is installed now, with the same process id, children and sockets."""
        self.save()
        self.upgrade = reply
        self.loop.running = False

    # processes

    def output(self, version: Version) -> Output:
        """The version's named pipe, read into the log."""
        import pwd

        user = version.spec.get("user")
        owner = pwd.getpwnam(user).pw_uid if user else os.geteuid()
        output = Output(f"{self.folder}/output.{version.number}", version.id, self.log, owner)
        self.loop.watch(output.fd, output.read)  # type: ignore[arg-type]
        return output

    def begin(self, version: Version, delay: float) -> None:
        """Start the process of a version: the child waits until it is in the state, then for its delay."""
        assert version.output  # noqa: S101
        listener = self.groups[version.address].sockets.get(version.number) if version.address else None
        child_output = version.output.for_child()
        try:
            pid, release = process.spawn(version.spec, listener.fileno() if listener else None, child_output, delay)
        finally:
            os.close(child_output)
        version.pid, version.start = pid, process.start_time(pid) or 0
        version.born = time.monotonic() + delay
        self.attend(version)
        try:
            self.save()
        except OSError:
            if version.phase == "candidate" and not version.restarts:
                os.close(release)  # the child leaves
                raise
        os.write(release, b".")
        os.close(release)

    def attend(self, version: Version) -> None:
        """Notice the end of a version's process, be it a child of this keeper or of the one before."""
        version.pidfd = os.pidfd_open(version.pid)
        self.loop.watch(version.pidfd, partial(self.ended, version))

    def ended(self, version: Version) -> None:
        """A version's process ended: end what it left behind, then start it again, or be done."""
        self.loop.forget(version.pidfd)
        os.close(version.pidfd)
        version.pidfd = -1
        process.signal_all(version.pid, signal.SIGKILL)  # while its id cannot have been given to anybody else
        status = None
        with suppress(ChildProcessError):
            _, status = os.waitpid(version.pid, os.WNOHANG)
        code = None if status is None else os.waitstatus_to_exitcode(status)
        version.exit = "unknown status" if code is None else f"signal {-code}" if code < 0 else f"exit status {code}"
        version.pid = 0
        if version.output:
            while version.output.read():
                pass
        for call in version.watchers:
            call()
        version.watchers.clear()
        if version.phase == "draining":
            self.finish(version)
            return
        version.fails = 1 if time.monotonic() - version.born >= HEALTHY else version.fails + 1
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (version.fails - 1))
        if code == 0 and version.spec.get("restart") == "on-failure":
            version.phase = "done"
        elif version.phase == "candidate" and version.fails >= TRIES and not version.replaces:
            version.phase = "failed"
        else:
            self.say(f"{version.id} ended ({version.exit}), again in {delay:g} s")
            version.restarts += 1
            self.begin(version, delay)
            return
        self.say(f"{version.id} ended ({version.exit}): {version.phase}")
        self.save_if_possible()

    def drain(self, version: Version, seconds: float) -> None:
        """End a version: when nothing waits in its queue SIGTERM, then SIGKILL after ``seconds``."""
        was_current = version.number == self.current
        used = version.phase in {"live", "done"}
        version.phase = "draining"
        version.spec["drain"] = seconds if used else min(seconds, UNUSED_GRACE)
        if was_current:
            self.current = None
        self.save_if_possible()
        if not version.pid or time.monotonic() < version.born:  # nothing runs, at most a child that waits
            self.kill(version)
            return
        limit = time.monotonic() + version.spec["drain"]
        settled = version.left + SETTLE if used and version.left else 0.0
        self.say(f"{version.id} drains")
        self.await_queue(version, settled, limit)

    def await_queue(self, version: Version, settled: float, limit: float) -> None:
        """Send SIGTERM once the accept queue is empty and half-open connections had time to finish."""
        now = time.monotonic()
        if version.pid and now < limit and (now < settled or (version.phase == "draining" and self.queue(version))):
            version.timer = self.loop.after(POLL, partial(self.await_queue, version, settled, limit))
            return
        if not version.pid:
            return
        version.termed = True
        with suppress(ProcessLookupError):
            os.killpg(version.pid, signal.SIGTERM)
        version.timer = self.loop.after(float(version.spec["drain"]), partial(self.kill, version))

    def queue(self, version: Version) -> int:
        """Connections that wait to be accepted by a version that no new ones go to."""
        if not version.address or self.groups[version.address].current == version.number:
            return 0  # users still come, there is nobody else to send them to
        if listener := self.groups[version.address].sockets.get(version.number):
            return steering.backlog(listener)
        return sum(p.queue for p in steering.listeners(int(version.spec["port"])) if p.inode == version.node)

    def kill(self, version: Version) -> None:
        """End a version at once."""
        if version.pid:
            process.signal_all(version.pid, signal.SIGKILL)
        elif version.number in self.versions:
            self.finish(version)

    def finish(self, version: Version) -> None:
        """Forget a version whose process has ended."""
        if version.timer:
            version.timer.cancel()
        self.versions.pop(version.number, None)
        if version.output:
            self.loop.forget(version.output.fd)
            version.output.close()
        if version.address:
            group = self.groups[version.address]
            if group.current == version.number:
                group.current = None
            if version.number in group.sockets:
                with suppress(OSError):
                    steering.close_to_users(group.sockets[version.number], self.port)
            elif version.number in group.order:
                group.order.leave(version.number)  # the kernel closed it with the process
                self.apply(version.address)
            self.trim(version.address)
        self.save_if_possible()
        self.say(f"{version.id} has ended")
        for reply in version.waiting:
            reply({"ok": True, "id": version.id, "exit": version.exit})
        self.rest()

    def rest(self) -> None:
        """End the keeper once nothing is left to keep."""

        def end() -> None:
            if not self.versions and not (self.control and self.control.open):
                self.loop.running = False
            elif not self.versions:
                self.rest()

        if not self.versions:
            self.loop.after(IDLE, end)

    # sockets

    def listen(self, version: Version) -> None:
        """Add a socket for a version to its group, closed to users, the program set before it listens."""
        address = str(version.address)
        group = self.groups.setdefault(address, Group())
        self.alone(address)
        bind, _, port = address.rpartition(" ")
        try:
            made = steering.listener(bind, int(port))
        except OSError as error:
            if not group.order:
                del self.groups[address]
            raise RefusedError(
                f"cannot listen on {bind} port {port}: {error.strerror}. {holders(int(port))}"
            ) from error
        version.node = steering.inode(made)
        steering.close_to_users(made, self.port)
        index = len(group.order)
        current = index if group.current is None else group.order.index(group.current)
        member = next(iter(group.sockets.values()), made)
        steering.steer(member, self.port, index, current)
        made.listen(BACKLOG)
        group.order.join(version.number)
        group.sockets[version.number] = made
        group.nodes[version.number] = version.node

    def alone(self, address: str) -> None:
        """Make sure that only this keeper's sockets listen on a port.

        Raises:
            RefusedError: Another one does; it could get users, or move the indices.
        """
        port = int(address.rpartition(" ")[2])
        ours = {node for group in self.groups.values() for node in group.nodes.values()}
        if any(peer.inode not in ours for peer in steering.listeners(port)):
            raise RefusedError(f"something else listens on port {port}. {holders(port, ours)} {HANDOVER}")

    def apply(self, address: str) -> None:
        """Make the kernel do what the group says: who is open to users, and who gets them."""
        group = self.groups[address]
        if not group.sockets:
            return
        if group.current in group.sockets:
            steering.open_to_users(group.sockets[group.current])
        last = len(group.order) - 1
        current = last if group.current is None else group.order.index(group.current)
        newest = max((n for n in group.order if n in self.versions), default=group.order[last])
        steering.steer(next(iter(group.sockets.values())), self.port, group.order.index(newest), current)

    def trim(self, address: str) -> None:
        """Close sockets of versions that are gone, as far as no user's connection could be misled by the new order."""
        group = self.groups[address]
        gone = [number for number in group.order if number not in self.versions]
        for number in gone:
            if group.certain and not group.order.may_leave(number, group.current):
                continue
            if not group.certain and len(gone) < len(group.order) - 1:
                break  # all others at once, or none
            with suppress(OSError):  # also where a process that escaped still holds it
                group.sockets[number].shutdown(socket.SHUT_RDWR)
            group.sockets.pop(number).close()
            group.nodes.pop(number, None)
            group.order.leave(number)
        if len(group.order) <= 1:
            group.certain = True
        if not group.order:
            del self.groups[address]
        elif gone:
            self.apply(address)

    # state

    def find(self, release: str) -> Version | None:
        """The version of a release that is not on its way out."""
        return next((v for v in self.versions.values() if v.id == release and v.phase != "draining"), None)

    def required(self, request: dict[str, Any]) -> Version:
        """The same, by a request."""
        version = self.find(str(request["id"]))
        if version is None:
            raise RefusedError(f"the keeper has no release {request['id']}; start it first.")
        return version

    def save(self) -> None:
        """Write the state."""
        state.save(
            self.folder,
            {
                "current": self.current,
                "next": self.next,
                "versions": [version.record() for version in self.versions.values()],
                "groups": {address: group.record() for address, group in self.groups.items()},
            },
        )

    def save_if_possible(self) -> None:
        """Write the state where the world has changed already: a full disk must not stop the keeper."""
        try:
            self.save()
        except OSError as error:
            self.say(f"cannot write the state: {error}")

    def say(self, text: str) -> None:
        """A line of the keeper's own in the log."""
        self.log.write("keeper", [text.encode()])


def condition(version: Version) -> str:
    """``running``, ``restarting`` while it waits for its next try, or ``ended``."""
    if not version.pid:
        return "ended"
    return "running" if time.monotonic() >= version.born else "restarting"


def advice(version: Version) -> str:
    """What is likely wrong with a version that ended."""
    tail = b"\n".join(version.output.tail).lower() if version.output else b""
    if version.address and version.exit and (b"address already in use" in tail or b"eaddrinuse" in tail):
        return HANDOVER
    return ""


def evidence(version: Version) -> str:
    """The last lines of its log, at most 3 KiB."""
    return b"\n".join(version.output.tail)[-3072:].decode("utf-8", "replace") if version.output else ""


def holders(port: int, ours: set[int] | None = None) -> str:
    """Who listens on a port, as far as this user may see."""
    found = []
    for peer in steering.listeners(port):
        if peer.inode in (ours or ()):
            continue
        for name in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208
            if process.holds(int(name), peer.inode) is not None:
                with suppress(OSError), open(f"/proc/{name}/comm") as file:  # noqa: PTH123
                    found.append(f"process {name} ({file.read().strip()})")
                break
        else:
            found.append(f"a process of user id {peer.uid}")
    return f"It is {' and '.join(found)}." if found else ""


def main(argv: list[str] | None = None) -> int:
    """Start a keeper in the background, unless one serves there; returns when requests are answered."""
    folder = os.path.abspath((argv or sys.argv[1:])[0])  # noqa: PTH100
    os.makedirs(folder, mode=0o700, exist_ok=True)  # noqa: PTH103
    ready, tell = os.pipe()
    if os.fork():
        os.close(tell)
        told = os.read(ready, 4096)
        sys.stderr.write("" if told == b"ready" else told.decode() or "the keeper ended while it started.\n")
        return 0 if told == b"ready" else 1
    os.close(ready)
    os.setsid()
    os.chdir(folder)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    from waybill.agent.keeper_adopt import serve

    try:
        serve(folder, tell)
    except BaseException as error:  # noqa: BLE001 - the last words go to whoever started it, and to the log
        import traceback

        Log(f"{folder}/service.log", 10 << 20).write("keeper", traceback.format_exc().encode().splitlines())
        with suppress(OSError):
            os.write(tell, f"the keeper could not start: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def lock(folder: str) -> int | None:
    """The lock of the folder for the life of this process; None when another keeper has it."""
    handle = os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


if __name__ == "__main__":
    sys.exit(main())
