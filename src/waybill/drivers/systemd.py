"""Runs each version as a systemd unit of its own, and moves users by redirect: what real hosts use.

The unit is hardened by default: no privileges to gain, nothing to write but ``shared/``, no devices, no kernel
settings. A drop-in of the operator's (``waybill-.service.d/`` for all) overrides any line of it. No unit is enabled:
after a reboot ``waybill agent boot`` performs ``start`` and ``switch`` of what was live once its secrets are open,
without a server. See docs/adr/0006.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import msgspec

from waybill.core.errors import InvalidInputError
from waybill.drivers import redirect
from waybill.drivers.model import Command, Drained, Health, Probe, Put, Release, Run, Step
from waybill.drivers.systemd_unit import Section, path, quoted, render

UNITS = "/etc/systemd/system"
_UNIT = re.compile(r"[a-z0-9][a-z0-9_-]*/[a-z0-9][a-z0-9._-]*/[A-Za-z0-9._-]+")
_PROGRAM = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.+-]*")

_HARDENING: Section = [
    ("NoNewPrivileges", "yes"),
    ("CapabilityBoundingSet", ""),
    ("AmbientCapabilities", ""),
    ("ProtectSystem", "strict"),
    ("ProtectHome", "yes"),
    ("PrivateTmp", "yes"),
    ("PrivateDevices", "yes"),
    ("ProtectProc", "invisible"),
    ("ProtectClock", "yes"),
    ("ProtectHostname", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectControlGroups", "yes"),
    ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX AF_NETLINK"),  # name look-up asks netlink for addresses
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("LockPersonality", "yes"),
    ("KeyringMode", "private"),
    ("RemoveIPC", "yes"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallFilter", "@system-service"),
    ("SystemCallErrorNumber", "EPERM"),
    ("UMask", "0027"),
    # Not MemoryDenyWriteExecute: Node, Java, .NET, PyPy and LuaJIT compile as they run.
]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What ``run`` may say for this driver besides the common keys.

    Attributes:
        memory: Most memory that all processes of a version have together, for example ``512M``; more ends it.
        tasks: Most processes and threads of a version.
        files: Most open files of one process.
    """

    memory: Annotated[str, msgspec.Meta(pattern="^[1-9][0-9]{0,17}[KMGT]?$")] | None = None
    tasks: Annotated[int, msgspec.Meta(ge=1, le=4_000_000)] | None = None
    files: Annotated[int, msgspec.Meta(ge=16, le=1_000_000_000)] | None = None


class SystemdDriver:
    """One unit for each version; nftables decides which of them users reach."""

    name: ClassVar[str] = "systemd"
    Options: ClassVar[type[msgspec.Struct]] = Options
    traffic: ClassVar[Literal["redirect"]] = "redirect"

    def plan(self, step: Step, release: Release, previous: Release | None) -> Sequence[Command]:
        """The commands of one step; see ``drivers.model.Driver``."""
        match step:
            case "start":
                return _start(release)
            case "probe":
                return _probe(release)
            case "switch":
                return _switch(release)
            case "stop":
                return _stop(release, previous)


DRIVER = SystemdDriver()


def unit_name(release: Release) -> str:
    """The unit of a version, for example ``waybill-hello.production-20261120T125901Z-0123456789ab.service``.

    A service's name has no dot, so no other service and environment have the same; a colon would be neater, but means
    something to ``systemd-analyze``.
    """
    name = f"{release.key}/{release.id}"
    if _UNIT.fullmatch(name) is None:
        raise InvalidInputError(f"no unit can be named after {release.key!r}, {release.id!r}.")
    service, environment, identity = name.split("/")
    return f"waybill-{service}.{environment}-{identity}.service"


def unit_text(release: Release) -> str:
    """The unit file of a version.

    Raises:
        InvalidInputError: The release has no user, or a value that no unit file can hold.
    """
    if release.user is None or release.user == "root":
        raise InvalidInputError(f"{release.key} has no user to run as.", "The driver systemd runs no service as root.")
    options = msgspec.convert(release.options or {}, Options, from_attributes=True)
    stop_within = max(release.drain, 5)  # 0 would mean forever to systemd
    limits = [("MemoryMax", options.memory), ("TasksMax", options.tasks), ("LimitNOFILE", options.files)]
    service: Section = [
        ("Type", "exec"),
        ("User", release.user),
        ("WorkingDirectory", path(release.root)),
        *(("Environment", quoted(pair)) for pair in _environment(release)),
        *([("EnvironmentFile", path(release.secrets))] if release.secrets else []),
        ("ExecStart", ":" + " ".join(map(quoted, _argv(release)))),  # ':' keeps a '$' as it is
        # Nothing asks a service without a port whether it is well, so it has to live this long to count as started.
        *([] if release.port else [("ExecStartPost", "/bin/sleep 2")]),
        ("Restart", "on-failure"),
        ("RestartSec", "2"),
        ("KillSignal", "SIGTERM"),
        ("TimeoutStopSec", f"{stop_within:g}"),
        ("SyslogIdentifier", release.key),
        *((name, str(value)) for name, value in limits if value is not None),
        ("ReadWritePaths", quoted(f"-{release.state}/shared")),
        *_HARDENING,
    ]
    unit: Section = [
        ("Description", f"{release.key} {release.commit[:12]}, run by waybill"),
        ("After", "network.target"),  # not network-online: a host that boots without a network still serves
        ("StartLimitIntervalSec", "0"),  # never gives up: what it waits for may be back in the morning
        ("CollectMode", "inactive-or-failed"),
    ]
    return render({"Unit": unit, "Service": service})


def _start(release: Release) -> list[Command]:
    unit = unit_name(release)
    return [
        Put(path=f"{UNITS}/{unit}", content=unit_text(release)),
        Run(argv=("systemctl", "daemon-reload")),
        Run(argv=("systemctl", "start", unit)),
    ]


def _probe(release: Release) -> list[Command]:
    unit = unit_name(release)
    if release.port is None:
        return [Run(argv=("systemctl", "is-active", "--quiet", unit))]
    # Even without a health check users are sent to a port only when the version listens on it.
    return [Probe(port=_slot(release), health=release.health or Health(), owner=f"unit:{unit}")]


def _switch(release: Release) -> list[Command]:
    if release.port is None:
        return []
    route = redirect.Route(key=release.key, port=release.port, slot=_slot(release))
    return [Run(argv=("nft", "-f", "-"), stdin=redirect.switch(route))]


def _stop(release: Release, previous: Release | None) -> list[Command]:
    unit = unit_name(release)
    commands: list[Command] = []
    if release.port is not None:
        successor = previous if previous is not None and previous.id != release.id else None
        if successor is None or successor.port != release.port:
            text = redirect.withdraw(release.key, release.port, last=successor is None or successor.port is None)
            # 1: the port is another service's, so there is nothing of this one to withdraw.
            commands.append(Run(argv=("nft", "-f", "-"), stdin=text, accept=(0, 1)))
        commands.append(Drained(port=_slot(release), within=release.drain))
    return [
        *commands,
        # 5: systemd does not know the unit, so it was stopped and removed before.
        Run(argv=("systemctl", "stop", unit), timeout=max(release.drain, 5) + 30, accept=(0, 5)),
        Run(argv=("rm", "-f", f"{UNITS}/{unit}")),
        Run(argv=("systemctl", "daemon-reload")),
    ]


def _slot(release: Release) -> int:
    if release.slot not in redirect.SLOTS:
        raise InvalidInputError(f"{release.key} {release.id} has no slot to listen on.")
    return release.slot


def _environment(release: Release) -> list[str]:
    port = {"PORT": str(_slot(release))} if release.port is not None else {}
    for name in release.environment:
        if re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name) is None:
            raise InvalidInputError(f"{release.key}: {name!r} is no name of a variable.")
    return [f"{name}={value}" for name, value in (release.environment | port).items()]


def _argv(release: Release) -> tuple[str, ...]:
    if not release.command or not release.command[0]:
        raise InvalidInputError(f"{release.key} has no command to run.")
    program, *arguments = release.command
    if "/" in program:
        program = posixpath.normpath(posixpath.join(release.root, program))
    elif _PROGRAM.fullmatch(program) is None:
        raise InvalidInputError(
            f"{release.key}: systemd cannot find a program named {program!r}.", "Name it by its path."
        )
    return (program, *arguments)
