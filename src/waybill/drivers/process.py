"""The driver ``process``: no root, no systemd; a keeper starts the service and hands it its listening socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import msgspec

from waybill.drivers.model import Call, Command, Probe, Release, Step

STEADY = 1.0  # seconds that a version without a check must run before it counts as up
MARGIN = 30.0


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of ``run`` besides ``driver``, ``command``, ``port`` and ``drain``.

    Attributes:
        bind: Address to listen on, instead of the host's own; ``::`` takes IPv6 and IPv4.
        memory: Bytes of data that each process may have.
        files: Files that each process may have open.
        processes: Processes that the user may have.
        env: Plain variables, for what is no secret.
        restart: ``on-failure`` leaves a worker that ended with status 0.
        stop_signal: What the service understands as the wish to finish its requests and end; nginx needs SIGQUIT.
        log_size: Bytes after which the log is turned over; five files are kept.
    """

    bind: str = ""
    memory: int | None = None
    files: int | None = None
    processes: int | None = None
    env: dict[str, str] = {}
    restart: Literal["always", "on-failure"] = "always"
    stop_signal: Literal["SIGTERM", "SIGQUIT", "SIGINT"] = "SIGTERM"
    log_size: int = 10 * 1024**2


class ProcessDriver:
    """Steps of a service that a keeper runs."""

    name: ClassVar[str] = "process"
    Options: ClassVar[type[msgspec.Struct]] = Options
    traffic: ClassVar[Literal["steering", "redirect", "none"]] = "steering"

    def plan(self, step: Step, release: Release, previous: Release | None) -> Sequence[Command]:  # noqa: ARG002
        """The commands of one step; ``stop`` ends ``release``, whatever serves besides."""
        match step:
            case "start":
                return (_call(release, _start(release)),)
            case "probe":
                return (_probe(release),)
            case "switch":
                return (_call(release, {"op": "switch"}),)
            case "stop":
                return (_call(release, {"op": "stop", "drain": release.drain}, 2 * release.drain + MARGIN),)


DRIVER = ProcessDriver()


def keeper_folder(release: Release) -> str:
    """Where the keeper of the release's service has its state, control socket and log."""
    return f"{release.state}/keeper"


def _call(release: Release, request: dict[str, Any], timeout: float = MARGIN) -> Call:
    return Call(key=release.key, folder=keeper_folder(release), request={**request, "id": release.id}, timeout=timeout)


def _start(release: Release) -> dict[str, Any]:
    options: Options = release.options or Options()
    limits = {name: getattr(options, name) for name in ("memory", "files", "processes") if getattr(options, name)}
    return {
        "op": "start",
        "command": list(release.command),
        "root": release.root,
        "environment": {**release.environment, **options.env},
        "secrets": release.secrets,
        "user": release.user,
        "port": release.port,
        "bind": _bind(release),
        "drain": release.drain,
        "limits": limits,
        "restart": options.restart,
        "stop_signal": options.stop_signal,
        "log_size": options.log_size,
    }


def _probe(release: Release) -> Command:
    if release.port is None or release.health is None:
        return _call(release, {"op": "steady", "seconds": STEADY})
    bind = _bind(release)
    return Probe(
        port=release.port,
        health=release.health,
        owner=f"keeper:{keeper_folder(release)}:{release.id}",
        address="127.0.0.1" if bind in ("0.0.0.0", "::") else bind,  # noqa: S104 - compared, not bound
    )


def _bind(release: Release) -> str:
    options: Options = release.options or Options()
    return options.bind or release.address or "0.0.0.0"  # noqa: S104 - a service is there to be reached
