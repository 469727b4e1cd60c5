"""The seam between deciding and acting on a host.

A driver is pure: it turns a release and a step into commands, frozen values that ``agent/runner.py`` alone performs.
That gives a dry run, table tests, and a list of all that an agent can do: run a program, put a file, ask a keeper,
probe a port.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol

import msgspec


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How the new version proves itself before any user reaches it.

    Attributes:
        path: HTTP path that must answer 2xx or 3xx; None probes by a TCP connection alone.
        within: Seconds the new version has to answer well.
        timeout: Seconds one probe may take.
    """

    path: str | None = None
    within: float = 30.0
    timeout: float = 5.0


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one service laid out on a host, ready to be started.

    Attributes:
        key: ``service/environment``.
        id: ``<UTC stamp>-<commit, 12 digits>``, the name of its folder under ``releases/``.
        sequence: Of the manifest that wants it.
        commit: Full object id.
        root: Absolute path of the release folder, the working directory of the service.
        state: Absolute path of the folder of this service and environment (holds releases/, shared/, current).
        user: Unprivileged account that it runs as; None means the agent's own (which is then no root).
        command: Argument vector; a relative first part is resolved in ``root``.
        environment: Plain variables: WAYBILL_SERVICE, WAYBILL_ENVIRONMENT, WAYBILL_COMMIT, WAYBILL_RELEASE.
        secrets: Path of the file in tmpfs with the decrypted variables, NAME=value lines quoted as systemd's
            EnvironmentFile reads them; None when there are none.
        port: The port that users connect to; None when the service listens on none.
        slot: Loopback port of its own, for drivers that redirect; 0 for those that hand over a socket.
        health: None means no check, which every status shows as a warning.
        drain: Seconds that established connections keep after a switch.
        address: The address that services of this host listen on; empty means all.
        options: The driver's own options, an instance of its ``Options``.
    """

    key: str
    id: str
    sequence: int
    commit: str
    root: str
    state: str
    command: tuple[str, ...]
    environment: dict[str, str]
    options: Any
    user: str | None = None
    secrets: str | None = None
    port: int | None = None
    slot: int = 0
    health: Health | None = None
    drain: float = 30.0
    address: str = ""


class Run(msgspec.Struct, frozen=True, kw_only=True, tag="run"):
    """Run a program to its end; a status that is not in ``accept`` fails the step. Never a shell."""

    argv: tuple[str, ...]
    cwd: str | None = None
    user: str | None = None
    environment: dict[str, str] = {}
    stdin: str = ""
    timeout: float = 60.0
    accept: tuple[int, ...] = (0,)


class Put(msgspec.Struct, frozen=True, kw_only=True, tag="put"):
    """Write a file whole: to a temporary name, synced, then renamed."""

    path: str
    content: str
    mode: int = 0o644


class Call(msgspec.Struct, frozen=True, kw_only=True, tag="call"):
    """Ask the keeper of a service (started when it is not there) and wait for its answer.

    Attributes:
        key: ``service/environment``, for messages.
        request: One request of ``agent/keeper.py``.
        timeout: Seconds it may take; a keeper that dies meanwhile is started again and asked again.
        folder: The keeper's own folder: state, control socket, logs.
    """

    key: str
    request: dict[str, Any]
    timeout: float = 60.0
    folder: str = ""


class Probe(msgspec.Struct, frozen=True, kw_only=True, tag="probe"):
    """Ask the new version, and only it, until it answers well or ``health.within`` has passed.

    Attributes:
        port: TCP port on ``address``.
        source: Source port to connect from, which the steering program sends to the new version; 0 for any, or, with
            a ``keeper:`` owner, the one that the keeper holds for this.
        owner: Who must have accepted the connection, so that nobody else answers in its place: ``unit:NAME`` (a
            process in the control group of that systemd unit), ``keeper:FOLDER:RELEASE`` (a process that the keeper in
            FOLDER runs for that release), or empty for anybody.
        address: The address to connect to, and from.
    """

    port: int
    health: Health
    source: int = 0
    owner: str = ""
    address: str = "127.0.0.1"


class Drained(msgspec.Struct, frozen=True, kw_only=True, tag="drained"):
    """Wait until no connection to a version is left, accepted or not, but no longer than ``within``; never fails.

    Attributes:
        port: The TCP port that the version listens on.
        within: Seconds.
    """

    port: int
    within: float


Command = Run | Put | Call | Probe | Drained

Step = Literal["start", "probe", "switch", "stop"]


class Driver(Protocol):
    """What a file in ``drivers/`` provides as ``DRIVER``."""

    name: ClassVar[str]
    Options: ClassVar[type[msgspec.Struct]]
    traffic: ClassVar[Literal["steering", "redirect", "none"]]

    def plan(self, step: Step, release: Release, previous: Release | None) -> Sequence[Command]:
        """The commands of one step.

        ``start`` brings the release up where no user reaches it, ``probe`` asks it, ``switch`` sends new
        connections to it, ``stop`` drains and ends it. ``previous`` is what serves now, if anything does.
        Every step may be performed again after a power cut and must then change nothing that is right already.
        """
        ...
