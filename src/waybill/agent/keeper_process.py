"""One process of a service: how it is born, recognised after a restart of the keeper, and ended.

A child waits before ``exec`` until its parent has recorded it (or vanished: then it leaves), and then for its back-off.
So there is never a process that nobody knows of, and while a crashed version waits for its next try, the waiting
child holds its listening socket open. Standard library only: the keeper imports this.
"""

from __future__ import annotations

import itertools
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LISTEN_FD = 3  # sd_listen_fds(3): the first inherited socket
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LIMITS = {
    # RLIMIT_DATA and not RLIMIT_AS: runtimes reserve far more addresses than they ever fill
    "memory": resource.RLIMIT_DATA,
    "files": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
}
_PIDFD_GETFD = 438  # the same on every architecture; Linux 5.6
_NO_NEW_PRIVS = 38


def spawn(spec: Mapping[str, Any], listener: int | None, output: int, delay: float) -> tuple[int, int]:
    """Fork a child that becomes ``spec["command"]`` once released.

    Args:
        spec: The version as in the ``start`` request.
        listener: Descriptor of its listening socket.
        output: Descriptor that becomes its standard output and error.
        delay: Seconds that it waits after its release.

    Returns:
        Its process id, and a descriptor: write a byte to release it, close it to make it leave.
    """
    gate, release = os.pipe()
    pid = os.fork()
    if pid:
        os.close(gate)
        return pid, release
    try:
        for name in ("SIGPIPE", "SIGXFSZ", "SIGCHLD", "SIGTERM", "SIGINT", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        os.close(release)
        os.setsid()
        if os.read(gate, 1):
            time.sleep(delay)
            _become(spec, listener, output)
    except BaseException as error:  # noqa: BLE001 - nothing may escape into the parent's code
        os.write(output, f"cannot start {spec['command'][0]}: {error}\n".encode())
    finally:
        os._exit(127)


def _become(spec: Mapping[str, Any], listener: int | None, output: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    environment = variables(spec)
    if listener is not None:
        os.set_blocking(listener, True)  # shared with the child before this one, which may have changed it
        if listener == LISTEN_FD:
            os.set_inheritable(LISTEN_FD, True)
        else:
            os.dup2(listener, LISTEN_FD)
        environment |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), "PORT": str(spec["port"])}
    for name, limit in LIMITS.items():
        if value := spec.get("limits", {}).get(name):
            resource.setrlimit(limit, (value, value))
    os.chdir(spec["root"])
    os.umask(0o022)
    _prctl(_NO_NEW_PRIVS, 1)
    if user := spec.get("user"):
        import pwd

        entry = pwd.getpwnam(user)
        if os.geteuid() == 0:
            os.initgroups(user, entry.pw_gid)
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)
        elif os.geteuid() != entry.pw_uid:
            raise PermissionError(f"only root can run it as {user}")
    command = list(spec["command"])
    program = os.path.join(spec["root"], command[0]) if "/" in command[0] else command[0]  # noqa: PTH118
    os.execvpe(program, command, environment)  # noqa: S606 - argument vector, no shell


def variables(spec: Mapping[str, Any]) -> dict[str, str]:
    """The environment of the service: a few defaults, what the release says, and its secrets, read afresh."""
    import pwd

    entry = pwd.getpwnam(spec["user"]) if spec.get("user") else pwd.getpwuid(os.geteuid())
    found = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name}
    found |= spec.get("environment", {})
    if secrets := spec.get("secrets"):
        found |= parse_environment(Path(secrets).read_text())
    return found


def parse_environment(text: str) -> dict[str, str]:
    r"""The variables of a file as systemd.exec(5) describes ``EnvironmentFile=``.

    Quotes, line continuations, and ``\`` before any character (in double quotes only before ``"\$`` and a back-tick)
    are understood; comments start with ``#`` or ``;``. Values are never put into errors.

    Raises:
        ValueError: A line has no ``=`` or a quote is not closed; tells the line.
    """
    found: dict[str, str] = {}
    at, size = 0, len(text)
    while at < size:
        if text[at].isspace():
            at += 1
            continue
        start = at
        end = _line_end(text, at)
        if text[at] in "#;":
            at = end
            continue
        name, equals, _ = text[at:end].partition("=")
        if not equals or not name.strip():
            raise ValueError(f"line {text.count(chr(10), 0, start) + 1} of the variables is no NAME=value")
        value, at = _value(text, at + len(name) + 1)
        if at > size:
            raise ValueError(f"the quote in line {text.count(chr(10), 0, start) + 1} of the variables is not closed")
        found[name.strip()] = value
    return found


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _value(text: str, at: int) -> tuple[str, int]:
    out: list[str] = []
    solid = 0  # how much of the value is kept when trailing blanks are cut
    quote, size = "", len(text)
    while at < size and text[at] in " \t":
        at += 1
    while at < size:
        char = text[at]
        at += 1
        if char == "\\" and quote != "'":
            following = text[at : at + 1]
            at += 1
            if quote and following not in ('"', "\\", "$", "`", "\n"):
                out.append("\\" + following)
            elif following != "\n":
                out.append(following)
            solid = len(out)
        elif char == quote:
            quote = ""
            solid = len(out)
        elif not quote and char in "\"'":
            quote = char
        elif not quote and char == "\n":
            break
        else:
            out.append(char)
            if quote or char not in " \t\r":
                solid = len(out)
    return "".join(out[:solid]), size + 1 if quote else min(at, size)


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which the process started (proc_pid_stat(5), field 22); None when it is gone.

    Together with the process id and the boot id this names a process for good, also after the id was used again.
    """
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in ("Z", "X") else None


def session(leader: int) -> list[int]:
    """The living processes in the session of ``leader``, itself included."""
    names = filter(str.isdecimal, os.listdir("/proc"))  # noqa: PTH208 - called often; names are enough
    seen = ((int(name), _stat(int(name))) for name in names)
    return [pid for pid, fields in seen if fields and fields[3] == str(leader) and fields[0] not in {"Z", "X"}]


def _stat(pid: int) -> list[str] | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return file.read().decode("ascii", "replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def signal_all(leader: int, start: int, number: int) -> None:
    """Send a signal to everybody in the session of ``leader``, and to it while it is the process that began then."""
    members = set(session(leader))
    if start_time(leader) == start:
        members.add(leader)  # it may not have come to setsid yet
    for member in members:
        try:
            os.kill(member, number)
        except ProcessLookupError:
            continue


def holds(pid: int, node: int) -> int | None:
    """The descriptor under which a process holds the socket with this inode, or None.

    Raises:
        PermissionError: The process may not be looked into: another user's, or one that has made itself undumpable.
    """
    try:
        names = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208
    except (FileNotFoundError, ProcessLookupError):
        return None
    for name in names:
        try:
            if os.readlink(f"/proc/{pid}/fd/{name}") == f"socket:[{node}]":  # noqa: PTH115
                return int(name)
        except FileNotFoundError:
            continue
    return None


def take_socket(leader: int, node: int) -> socket.socket | None:
    """A second handle of a listening socket that a running service holds, by pidfd_getfd(2).

    Returns:
        None where nobody in the session has it or the kernel does not allow it (Yama's ``ptrace_scope``).
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    for pid in itertools.chain((leader,), _after(leader)):
        try:
            number = holds(pid, node)
            if number is None:
                continue
            handle = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            got = libc.syscall(_PIDFD_GETFD, handle, number, 0)
        finally:
            os.close(handle)
        if got >= 0:
            os.set_inheritable(got, False)
            if os.fstat(got).st_ino == node:
                return socket.socket(fileno=got)
            os.close(got)
    return None


def _after(leader: int) -> Iterator[int]:
    yield from session(leader)  # looked for only when the leader itself does not have it


def boot_id() -> str:
    """Changes with every boot."""
    with open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123
        return file.read().strip()


def _prctl(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if sys.platform != "linux":  # pragma: no cover
    raise ImportError("the keeper needs Linux")
