"""``waybill agent``: what runs on a host, and what a person can ask of it there, with or without the server."""

from __future__ import annotations

import asyncio
import getpass
import json as jsonlib
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

from waybill.core.errors import ConflictError, NotFoundError, WaybillError

if TYPE_CHECKING:
    from waybill.agent.state import Folder, Home

app = cyclopts.App(
    name="waybill agent", help="Run the agent of this host, or ask it.", help_format="plaintext", version_flags=[]
)
WAIT = 120.0
UNIT = "waybill-agent.service"
UNITS = (Path("/etc/systemd/system"), Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
StateFolder = Annotated[Path | None, cyclopts.Parameter(name="--state")]


@app.command
def enroll(
    token: str,
    *,
    allow: Annotated[list[str], cyclopts.Parameter(negative=())],
    name: str | None = None,
    state: StateFolder = None,
    force: bool = False,
    accounts: bool = True,
    json: bool = False,
) -> None:
    """Enrol this host with a server.

    Args:
        token: What `waybill enroll` printed on the server's side.
        allow: Pattern SERVICE/ENVIRONMENT of what this host will accept; may be given more than once.
        name: Name that this host asks for; its host name when not given.
        state: The agent's folder.
        force: Enrol a folder anew, with new keys.
        accounts: Whether a root agent gives each service an account of its own.
        json: Print the outcome as JSON.
    """
    from waybill.agent.enrol import enrol
    from waybill.vault.identity import fingerprint

    home = _home(state)
    enrolled = enrol(home, token, name=name or socket.gethostname(), allow=tuple(allow), force=force, accounts=accounts)
    mark = fingerprint((home.keys / "age.pub").read_text().strip())
    if json:
        _print({"host": enrolled.host, "server": enrolled.agents_url, "fingerprint": mark, "state": str(home.root)})
        return
    print(f"enrolled as {enrolled.host} with {enrolled.agents_url}")
    print(f"recipient fingerprint: {mark}")
    print("Compare it with what `waybill keys grant` shows, should the host get the key of locked variables.")
    packaged = state is None and os.geteuid() == 0 and any((folder / UNIT).exists() for folder in UNITS)
    starts = "systemctl enable --now waybill-agent-boot waybill-agent" if packaged else "waybill agent run"
    print(f"Next: {starts}")


@app.command
def run(*, state: StateFolder = None, json: bool = False) -> None:
    """Run the agent in the foreground until SIGTERM.

    Args:
        state: The agent's folder.
        json: Log in JSON lines.
    """
    from waybill.agent.main import run as run_agent

    run_agent(_home(state), as_json=json)


@app.command
def boot(*, state: StateFolder = None, json: bool = False) -> None:
    """Bring every live release up again, from what is on this host; needs no server.

    Args:
        state: The agent's folder.
        json: Print the outcome as JSON.
    """
    from waybill.agent.main import boot as boot_services

    home = _home(state)
    home.config()
    with home.locked():
        troubles = boot_services(home)
    if json:
        _print({"failed": troubles})
    for key, trouble in troubles.items():
        print(f"{key}: {trouble}", file=sys.stderr)
    if troubles:
        raise WaybillError(f"{len(troubles)} of the live services did not come up.", "waybill agent logs says more.")


@app.command
def status(*, state: StateFolder = None, json: bool = False) -> None:
    """Show what this host was told, and what serves.

    Args:
        state: The agent's folder.
        json: Print it as JSON.
    """
    from waybill.agent.standing import standings

    home = _home(state)
    config = home.config()
    rows = standings(home)
    running = home.running()
    link = home.link()
    trouble = link.trouble if link else "never connected"
    if json:
        about = {"host": config.host, "servers": config.servers, "allow": config.allow, "agent": running}
        _print({**about, "trouble": trouble, "services": rows})
        return
    runs = f"runs (pid {running})" if running else "does not run"
    print(f"{config.host}: agent {runs}; accepts {', '.join(config.allow)}")
    if running and trouble:
        print(f"  no server since {link.at if link else 'ever'}: {trouble}")
    for row in rows:
        live = f"live {row['live_sequence']} ({row['live_commit'][:12]})" if row["live_commit"] else "nothing live"
        print(
            f"  {row['key']}: {row['state']} {row['sequence']}, {live}{' — ' + row['reason'] if row['reason'] else ''}"
        )
        if row["warning"]:
            print(f"    warning: {row['warning']}")


@app.command
def logs(service: str, *, follow: Annotated[bool, cyclopts.Parameter(name=("--follow", "-f"))] = False,
         lines: int = 100, state: StateFolder = None, json: bool = False) -> None:  # fmt: skip
    """Show the log of a service on this host.

    Args:
        service: SERVICE/ENVIRONMENT.
        follow: Go on as new lines come, until Ctrl-C.
        lines: How many of the last lines.
        state: The agent's folder.
        json: One JSON object a line.
    """
    from waybill.agent.logs import tail

    folder = _home(state).named(service)

    async def show() -> None:
        async for line in tail(folder, lines, None if follow else 0):
            print(jsonlib.dumps({"line": line}) if json else line, flush=True)

    asyncio.run(show())


@app.command
def hold(service: str, *, state: StateFolder = None, json: bool = False) -> None:
    """Leave a service as it is, whatever the server says, until `waybill agent release`.

    Args:
        service: SERVICE/ENVIRONMENT.
        state: The agent's folder.
        json: Print the outcome as JSON.
    """
    from waybill.agent.state import write

    home = _home(state)
    folder = home.named(service)
    write(folder.path / "hold", f"{getpass.getuser()}\n", 0o644)
    _tell(home)
    _say({"service": folder.key, "held": True}, f"{folder.key} is held.", json)


@app.command
def release(service: str, *, state: StateFolder = None, json: bool = False) -> None:
    """End a hold: the host goes on to what the server wants now.

    Args:
        service: SERVICE/ENVIRONMENT.
        state: The agent's folder.
        json: Print the outcome as JSON.
    """
    home = _home(state)
    folder = home.named(service)
    (folder.path / "hold").unlink(missing_ok=True)
    _tell(home)
    _say({"service": folder.key, "held": False}, f"{folder.key} is no longer held.", json)


@app.command
def rollback(service: str, *, state: StateFolder = None, json: bool = False) -> None:
    """Go back to the release that was live before, with its own variables; needs no server.

    Args:
        service: SERVICE/ENVIRONMENT.
        state: The agent's folder.
        json: Print the outcome as JSON.
    """
    from waybill.agent.main import settle
    from waybill.agent.state import Rollback
    from waybill.core.clock import stamp

    home = _home(state)
    folder = home.named(service)
    live = folder.live()
    if live is None or live.previous is None:
        raise NotFoundError(f"{folder.key} has no earlier release on this host.", "Deploy an older commit instead.")
    before = live.placed.release.id
    folder.store(Rollback(by=os.environ.get("SUDO_USER") or getpass.getuser(), at=stamp()))
    if not _tell(home):
        with home.locked():
            settle(home, folder)
    _await_rollback(folder, before)
    now = folder.live()
    commit = now.placed.manifest.commit if now else ""
    _say({"service": folder.key, "live_commit": commit}, f"{folder.key} is back at {commit[:12]}.", json)


def _await_rollback(folder: Folder, before: str) -> None:
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        attempt, live = folder.attempt(), folder.live()
        if folder.rollback() is None and attempt and attempt.rollback:
            if live and live.placed.release.id == attempt.release != before:
                return
            if attempt.verdict and attempt.cleared:
                raise WaybillError(f"{folder.key} could not go back: {attempt.reason}", "What served goes on serving.")
        time.sleep(0.05)
    raise ConflictError(
        f"{folder.key} did not go back within {WAIT:g} s.", "waybill agent status says where it stands."
    )


def _home(state: Path | None) -> Home:
    from waybill.agent.state import Home, default_home

    return Home((state or default_home()).absolute())


def _tell(home: Home) -> bool:
    """Wake the running agent; False when none runs."""
    pid = home.running()
    if not pid:
        return False
    try:
        os.kill(pid, signal.SIGHUP)
    except PermissionError:
        raise ConflictError("the agent belongs to another user.", "Run this as the agent's user, or root.") from None
    except ProcessLookupError:
        return False
    return True


def _say(value: dict[str, Any], sentence: str, json: bool) -> None:  # noqa: FBT001
    print(jsonlib.dumps(value) if json else sentence)


def _print(value: Any) -> None:
    print(jsonlib.dumps(value))
