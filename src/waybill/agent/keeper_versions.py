"""What a keeper does: the requests of the agent, and the life of each version of the service.

Standard library only: the keeper imports this.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from functools import partial
from typing import Any

from waybill.agent import keeper_process as process
from waybill.agent import keeper_state as state
from waybill.agent.keeper_log import Log, Output
from waybill.agent.keeper_loop import Control, Loop, RefusedError, Reply
from waybill.agent.keeper_sockets import HANDOVER, Sockets
from waybill.agent.keeper_state import Version

FIRST_DELAY, LONGEST_DELAY = 0.1, 30.0  # seconds before a crashed version starts again
HEALTHY = 10.0  # seconds after which a run counts as good: the next crash starts again after the first delay
TRIES = 3  # crashes after which a version that was never live counts as failed
SETTLE = 1.0  # seconds after a switch in which half-open connections may still finish at the old version
UNUSED_GRACE = 5.0  # seconds that a version which never had a user gets to end
IDLE = 5.0  # seconds without any version after which the keeper ends
POLL = 0.02
LOG_SIZE = 10 << 20


class Keeper:
    """All that runs of one service in one environment.

    Args:
        folder: Its own folder.
        loop: The event loop.
    """

    def __init__(self, folder: str, loop: Loop) -> None:
        self.folder = folder
        self.loop = loop
        self.versions: dict[int, Version] = {}
        self.sockets = Sockets(self.versions)
        self.current: int | None = None
        self.next = 1
        self.log = Log(f"{folder}/service.log", LOG_SIZE)
        self.control: Control | None = None
        self.upgrade: tuple[Reply, dict[str, Any]] | None = None

    def handle(self, request: dict[str, Any], reply: Reply) -> None:
        """Fulfil one request; the answer may come later. Each may be repeated without harm."""
        operations = {
            "start": self.start,
            "steady": self.steady,
            "switch": self.switch,
            "stop": self.stop,
            "status": self.status,
            "reopen": self.reopen,
            "upgrade": self.become_newer,
        }
        operation = operations.get(str(request.get("op")))
        if operation is None:
            raise RefusedError(f"the keeper knows no request {request.get('op')!r}; it knows {', '.join(operations)}.")
        operation(request, reply)

    def start(self, request: dict[str, Any], reply: Reply) -> None:
        """Bring up a release where only the probe reaches it; nothing happens when it is up already."""
        spec = {**request, "id": str(request["id"]), "command": [str(word) for word in request["command"]]}
        spec["root"] = str(request["root"])
        version = self.find(spec["id"])
        if version and version.phase == "failed":
            self.finish(version)
            version = None
        if version is None:
            self.log.limit = int(spec.get("log_size") or LOG_SIZE)
            version = self.bring_up(spec)
        reply({"ok": True, "id": version.id, "pid": version.pid, "source": self.sockets.source})

    def switch(self, request: dict[str, Any], reply: Reply) -> None:
        """Send new connections to a release; nothing happens when they go there already."""
        version = self.required(request)
        if version.number != self.current and condition(version) != "running":
            raise RefusedError(f"{version.id} does not run: {version.exit or 'it has not started'}. {advice(version)}")
        if version.number != self.current:
            self.make_current(version)
        reply({"ok": True, "id": version.id})

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
        """Answer whether a release runs for ``seconds`` without ending; asked of a version without a check."""
        version = self.required(request)

        def died() -> None:
            timer.cancel()
            why = f"{version.id} ended: {version.exit}. {advice(version)}".strip()
            reply({"ok": False, "reason": why, "evidence": evidence(version)})

        def lived() -> None:
            version.watchers.remove(died)
            reply({"ok": True, "id": version.id})

        timer = self.loop.after(float(request.get("seconds", 1.0)), lived)
        version.watchers.append(died)
        if condition(version) != "running":
            version.watchers.remove(died)
            died()

    def status(self, request: dict[str, Any], reply: Reply) -> None:  # noqa: ARG002
        """All versions, oldest first."""
        current = self.versions.get(self.current or 0)
        reply(
            {
                "ok": True,
                "pid": os.getpid(),
                "current": current.id if current else None,
                "source": self.sockets.source,
                "log": self.log.path,
                "versions": [
                    {
                        "id": v.id,
                        "phase": v.phase,
                        "state": condition(v),
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

    def become_newer(self, request: dict[str, Any], reply: Reply) -> None:
        """Become the keeper that is installed now, with the same process id, children and sockets."""
        self.save()
        self.upgrade = (reply, request)
        self.loop.running = False

    def bring_up(self, spec: dict[str, Any], replaces: int = 0) -> Version:
        """Make the socket and the process of a new version.

        Raises:
            RefusedError: Somebody else listens on its port.
            OSError: The state cannot be written; nothing has started then.
        """
        version = Version(self.next, spec)
        version.replaces = replaces
        if version.address:
            self.sockets.add(version)
        self.next += 1
        self.versions[version.number] = version
        try:
            version.output = self.output(version)
            self.begin(version, 0.0)
        except (OSError, KeyError):
            version.pid = 0
            self.finish(version)
            raise
        return version

    def make_current(self, version: Version) -> None:
        """Switch: recorded first, then done.

        Raises:
            RefusedError: Something else listens on the port.
            OSError: It could not be recorded; users stay where they are.
        """
        began = time.monotonic()
        before = self.versions.get(self.current or 0)
        if version.address:
            self.sockets.check_alone(version.address)
        phase, self.current, version.phase = version.phase, version.number, "live"
        try:
            self.save()
        except OSError:
            self.current, version.phase = before.number if before else None, phase
            raise
        if version.address:
            self.sockets.choose(version)
            self.sockets.apply(version.address)
        if before:
            before.left = time.monotonic()
        self.say(f"{version.id} serves, switched in {(time.monotonic() - began) * 1000:.1f} ms")

    def begin(self, version: Version, delay: float) -> None:
        """Start the process of a version: the child waits until it is in the state, then for its delay."""
        assert version.output  # noqa: S101
        listener = self.sockets.of(version)
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
        except OSError as error:
            if not version.restarts and version.phase == "candidate":
                self.disregard(version)
                os.close(release)  # the child leaves
                os.waitpid(pid, 0)
                raise
            self.say(f"cannot write the state: {error}")
        os.write(release, b".")
        os.close(release)

    def begin_again(self, version: Version, delay: float) -> None:
        """The same after a crash; where the host is too full for it, later."""
        if version.number not in self.versions or version.pid:
            return
        try:
            self.begin(version, delay)
        except OSError as error:
            self.say(f"cannot start {version.id}: {error}")
            self.loop.after(FIRST_DELAY * 10, partial(self.begin_again, version, 0.0))

    def attend(self, version: Version) -> None:
        """Notice the end of a version's process, be it a child of this keeper or of the one before."""
        version.pidfd = os.pidfd_open(version.pid)
        self.loop.watch(version.pidfd, partial(self.ended, version))

    def disregard(self, version: Version) -> None:
        """Stop noticing."""
        self.loop.forget(version.pidfd)
        os.close(version.pidfd)
        version.pidfd = -1

    def ended(self, version: Version) -> None:
        """A version's process ended: end what it left behind, then start it again, or be done."""
        self.disregard(version)
        process.signal_all(version.pid, version.start, signal.SIGKILL)  # while nobody else can have its id
        status = None
        with suppress(ChildProcessError):
            _, status = os.waitpid(version.pid, os.WNOHANG)
        code = None if status is None else os.waitstatus_to_exitcode(status)
        version.exit = "unknown status" if code is None else f"signal {-code}" if code < 0 else f"exit status {code}"
        version.pid = 0
        if version.output:
            version.output.read_all()
        for call in version.watchers:
            call()
        version.watchers.clear()
        if version.phase == "draining":
            self.finish(version)
            return
        version.fails = 1 if time.monotonic() - version.born >= HEALTHY else version.fails + 1
        if code == 0 and version.spec.get("restart") == "on-failure":
            version.phase = "done"
        elif version.phase == "candidate" and version.fails >= TRIES and not version.replaces:
            version.phase = "failed"
        else:
            delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(version.fails - 1, 16))
            self.say(f"{version.id} ended ({version.exit}), again in {delay:g} s")
            version.restarts += 1
            self.begin_again(version, delay)
            return
        self.say(f"{version.id} ended ({version.exit}): {version.phase}")
        self.save_if_possible()

    def drain(self, version: Version, seconds: float) -> None:
        """End a version: once nothing waits in its queue its stop signal, and ``seconds`` later SIGKILL."""
        used = version.phase in {"live", "done"}
        version.phase = "draining"
        version.spec["drain"] = seconds if used else min(seconds, UNUSED_GRACE)
        if version.number == self.current:
            self.current = None
        self.save_if_possible()
        self.say(f"{version.id} drains")
        if condition(version) != "running":  # at most a child that waits for its next try
            self.kill(version)
            return
        self.await_queue(version, version.left + SETTLE if version.left else 0.0)

    def await_queue(self, version: Version, settled: float) -> None:
        """Send the stop signal once the accept queue is empty and half-open connections had time to finish."""
        self._await_queue(version, settled, time.monotonic() + float(version.spec["drain"]))

    def _await_queue(self, version: Version, settled: float, limit: float) -> None:
        now = time.monotonic()
        if not version.pid:
            return
        if now < limit and (now < settled or self.sockets.waiting(version)):
            version.timer = self.loop.after(POLL, partial(self._await_queue, version, settled, limit))
            return
        number = getattr(signal, str(version.spec.get("stop_signal", "SIGTERM")), signal.SIGTERM)
        process.signal_all(version.pid, version.start, number)
        version.timer = self.loop.after(float(version.spec["drain"]), partial(self.kill, version))

    def kill(self, version: Version) -> None:
        """End a version at once."""
        if version.pid:
            process.signal_all(version.pid, version.start, signal.SIGKILL)
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
        self.sockets.remove(version)
        self.save_if_possible()
        self.say(f"{version.id} has ended{f' ({version.exit})' if version.exit else ''}")
        for reply in version.waiting:
            reply({"ok": True, "id": version.id, "exit": version.exit})
        self.rest()

    def rest(self) -> None:
        """End the keeper when nothing is left to keep and nobody talks to it."""

        def end() -> None:
            if not self.versions:
                self.loop.running = bool(self.control and self.control.open)
                self.rest()

        if not self.versions:
            self.loop.after(IDLE, end)

    def output(self, version: Version) -> Output:
        """The version's named pipe, read into the log."""
        import pwd

        user = version.spec.get("user")
        owner = pwd.getpwnam(user).pw_uid if user else os.geteuid()
        output = Output(f"{self.folder}/output.{version.number}", version.id, self.log, owner)
        self.loop.watch(output.fd, output.read)
        return output

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
                "groups": {address: group.record() for address, group in self.sockets.groups.items()},
            },
        )

    def save_if_possible(self) -> None:
        """Write the state where the world has changed already: a full disk must not stop the keeper."""
        try:
            self.save()
        except OSError as error:
            self.say(f"cannot write the state: {error}")

    def say(self, text: str) -> None:
        """Lines of the keeper's own in the log."""
        self.log.write("keeper", text.encode().splitlines())


def condition(version: Version) -> str:
    """``running``, ``restarting`` while it waits for its next try, or ``ended``."""
    if not version.pid:
        return "ended"
    return "running" if time.monotonic() >= version.born else "restarting"


def advice(version: Version) -> str:
    """What is likely wrong with a version that ended."""
    tail = b"\n".join(version.output.tail).lower() if version.output else b""
    in_use = b"address already in use" in tail or b"eaddrinuse" in tail
    return HANDOVER if version.address and version.exit and in_use else ""


def evidence(version: Version) -> str:
    """The last lines of its log, at most 3 KiB."""
    return b"\n".join(version.output.tail)[-3072:].decode("utf-8", "replace") if version.output else ""
