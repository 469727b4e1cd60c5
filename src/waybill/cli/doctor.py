"""``waybill doctor``: what is wrong, from here and from the server, each with its fix."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import cyclopts

from waybill.cli.output import STYLES, Json, emit
from waybill.core.errors import ForbiddenError, UnauthenticatedError, WaybillError
from waybill.wire.api import Diagnosis, Finding

if TYPE_CHECKING:
    from waybill.cli.client import Client

TIMEOUT = 5.0
SKEW = 60.0


class FaultsFoundError(WaybillError):
    """Something does not work; what and why was printed."""


def doctor(
    *,
    retry: Annotated[bool, cyclopts.Parameter(negative=())] = False,
    every: Annotated[bool, cyclopts.Parameter(name=["--all", "-a"], negative=())] = False,
    json: Json = False,
) -> None:
    """Say what is wrong with the server, its hosts and the way to them, each with the fix.

    On a host, where nobody has logged in, it looks at the agent, its services and the way to its server.

    Args:
        retry: Try again what the server has set aside.
        every: Show also what is fine.
        json: Print JSON.
    """
    from waybill.cli.client import Client, load

    try:
        login = load()
    except UnauthenticatedError:
        if retry or not (found := _host()):
            raise
        _tell(found, every=every, json=json)
        return
    found = reach("server", login.server, ca=login.ca)
    if not any(one.level == "fault" for one in found):
        client = Client(login)
        if retry:
            again = client.call("POST", "/api/work/retry", list[str])
            found.append(Finding(check="retry", level="fine", sentence=f"{len(again)} rows of work are tried again."))
        found += _server(client)
    _tell(found, every=every, json=json)


def _tell(found: list[Finding], *, every: bool, json: bool) -> None:
    faults = [one for one in found if one.level == "fault"]
    if json:
        emit(found)
    else:
        _print(found, every=every)
    if faults:
        raise FaultsFoundError(
            "1 fault was found." if len(faults) == 1 else f"{len(faults)} faults were found.",
            "" if json else "The fix stands below each.",
        )


def _host() -> list[Finding]:
    """What the agent of this machine can tell without a server; nothing where no agent is enrolled."""
    from waybill.agent.standing import standings
    from waybill.agent.state import Home, default_home

    home = Home(default_home())
    if not home.enrolled:
        return []
    config = home.config()
    if pid := home.running():
        sentence = f"it runs as {config.host} (pid {pid}), and accepts {', '.join(config.allow)}."
        found = [Finding(check="agent", level="fine", sentence=sentence)]
    else:
        fix = "systemctl enable --now waybill-agent-boot waybill-agent; journalctl -u waybill-agent says more."
        found = [_fault("agent", "it does not run; what was live goes on serving.", fix)]
    for url in config.servers:
        found += reach("server", url, mutual=True)
    for row in standings(home):
        check = f"service {row['key']}"
        if row["reason"]:
            fix = f"waybill agent logs {row['key']}; docs/guides/agent.md lists reasons and remedies."
            found.append(_fault(check, f"{row['state']}: {row['reason']}", fix))
        elif row["warning"]:
            fix = "Write `health` into its waybill.yml."
            found.append(Finding(check=check, level="warning", sentence=row["warning"], fix=fix))
        else:
            found.append(Finding(check=check, level="fine", sentence=f"{row['state']}, {row['live_commit'][:12]}."))
    return found


def _server(client: Client) -> list[Finding]:
    from waybill import __version__
    from waybill.core.clock import now, parse

    begun = now()
    try:
        told = client.call("GET", "/api/doctor", Diagnosis)
    except ForbiddenError as error:
        fix = "Run it with an admin's token to see what the server finds wrong with itself."
        return [Finding(check="server", level="warning", sentence=error.reason, fix=fix)]
    except WaybillError as error:
        return [
            Finding(check="server", level="fault", sentence=error.reason, fix=error.hint or "See the server's log.")
        ]
    found = []
    middle = begun + (now() - begun) / 2
    apart = (middle - parse(told.at)).total_seconds()
    if abs(apart) > SKEW:
        way = "ahead of" if apart > 0 else "behind"
        sentence = f"the clock of this machine is {abs(apart):.0f} s {way} the server's."
        found.append(Finding(check="clock", level="fault", sentence=sentence, fix="timedatectl set-ntp true on both."))
    else:
        found.append(Finding(check="clock", level="fine", sentence="this machine's and the server's agree."))
    if told.version != __version__:
        sentence = f"the server is version {told.version}, this is {__version__}."
        found.append(
            Finding(check="version", level="warning", sentence=sentence, fix="Bring both to the same version.")
        )
    return [*found, *reach("agents' port", told.agents_url, mutual=True), *told.findings]


def reach(check: str, url: str, *, ca: str = "", mutual: bool = False) -> list[Finding]:
    """Whether an address can be reached from here, and whether its certificate is accepted.

    Args:
        check: What to call it.
        url: The address.
        ca: PEM file to trust instead of the system's authorities.
        mutual: It is the agents' port: its own authority signs, so only the way to it is looked at.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return [_fault(check, f"{url!r} is no address.", "waybill login URL")]
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT) as connection:
            if parts.scheme != "https" or mutual:
                return [Finding(check=check, level="fine", sentence=f"{url} can be reached.")]
            context = ssl.create_default_context(cafile=ca or None)
            with context.wrap_socket(connection, server_hostname=host):
                return [Finding(check=check, level="fine", sentence=f"{url} can be reached; its certificate is good.")]
    except ssl.SSLCertVerificationError as error:
        return [_fault(check, f"the certificate of {url} is not accepted: {error.verify_message}.", _mend(error))]
    except ssl.SSLError as error:
        return [_fault(check, f"{url} does not speak TLS: {error.reason}.", f"Is it http://{host}:{port}?")]
    except socket.gaierror:
        return [_fault(check, f"the name {host} has no address here.", "Correct the name, or the DNS entry.")]
    except ConnectionRefusedError:
        fix = "Start the server (systemctl start waybill), or correct the port."
        return [_fault(check, f"nothing listens on {host} port {port}.", fix)]
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or type(error).__name__
        fix = f"A firewall is in between: let this machine reach {host} port {port} (TCP)."
        return [_fault(check, f"{host} port {port} cannot be reached: {why}.", fix)]


def _mend(error: ssl.SSLCertVerificationError) -> str:
    codes = {
        9: "Set the clock of this machine: timedatectl set-ntp true.",  # X509_V_ERR_CERT_NOT_YET_VALID
        10: "Renew the server's certificate and restart the server.",  # X509_V_ERR_CERT_HAS_EXPIRED
        18: "It is self-signed: waybill login URL --ca FILE with that very certificate.",  # DEPTH_ZERO_SELF_SIGNED_CERT
        19: "Its authority is unknown here: waybill login URL --ca FILE with the authority's certificate.",
        20: "Its authority is unknown here: waybill login URL --ca FILE with the authority's certificate.",
        62: "Issue the certificate with that name as a subject alternative name, or use the name that it has.",
        64: "Issue the certificate with that address as a subject alternative name, or use the name that it has.",
    }
    return codes.get(error.verify_code, "Give the authority to trust: waybill login URL --ca FILE.")


def _fault(check: str, sentence: str, fix: str) -> Finding:
    return Finding(check=check, level="fault", sentence=sentence, fix=fix)


def _print(found: list[Finding], *, every: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    shown = [one for one in found if every or one.level != "fine"]
    for one in shown:
        console.print(Text.assemble((one.level, STYLES.get(one.level, "")), f"  {one.check}: {one.sentence}"))
        if one.fix:
            console.print(Text(f"         {one.fix}"))
    fine = sum(one.level == "fine" for one in found)
    if not shown or not every:
        print(f"{fine} checks are fine." + ("" if shown else " Nothing is wrong."))
