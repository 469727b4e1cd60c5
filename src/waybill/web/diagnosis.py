"""What can go wrong around a server, looked at from its inside; each finding says what to do.

The facts are gathered first, in one read of the database and a few looks around; what they mean is decided by pure
functions, so that every fault can be tested without having it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from waybill import automations
from waybill.core.clock import now, parse
from waybill.core.plugins import Plugins
from waybill.deploy.model import Host
from waybill.deploy.store import access, hosts
from waybill.events import outbox
from waybill.events.outbox import Work
from waybill.infra.db import Connection
from waybill.web.context import Context
from waybill.wire.agent import Facts
from waybill.wire.api import Finding

DISK_FAULT, DISK_WARNING = 512 * 1024**2, 2 * 1024**3
EXPIRES_SOON = timedelta(days=14)
SKEW = 60.0
"""Seconds by which a clock may be off."""


class _Told(Facts, frozen=True, kw_only=True):
    received: str = ""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was looked at."""

    aside: list[Work] = field(default_factory=list)
    struggling: list[Work] = field(default_factory=list)
    hosts: list[Host] = field(default_factory=list)
    hooks: list[dict[str, str]] = field(default_factory=list)
    deliveries: dict[str, str] = field(default_factory=dict)


async def examine(context: Context) -> list[Finding]:
    """All findings, in the order in which a person would look."""
    seen = await context.db.read(_seen)
    settings = context.settings
    free = shutil.disk_usage(settings.folder).free
    found = [disk("the server's disk", free, str(settings.folder)), *programs()]
    if settings.tls_certificate:
        found += await asyncio.to_thread(certificate_file, settings.tls_certificate, context.public_url)
    found += public_address(context.public_url, has_hooks=bool(seen.hooks))
    found += work(seen.aside, seen.struggling)
    found += [finding for host in seen.hosts for finding in host_findings(host)]
    found += hooks(seen.hooks, seen.deliveries, context.metrics.refusals, context.public_url)
    return [*found, plugins()]


def _seen(connection: Connection) -> Seen:
    return Seen(
        aside=outbox.set_aside(connection),
        struggling=outbox.struggling(connection),
        hosts=[host for host in hosts.hosts(connection) if not host.revoked],
        hooks=access.hooks(connection),
        deliveries=access.last_deliveries(connection),
    )


def disk(what: str, free: int, path: str) -> Finding:
    """How much room there is."""
    gib = f"{free / 1024**3:.1f} GiB free"
    if free >= DISK_WARNING:
        return _fine(what, f"{gib} at {path}.")
    fix = f"Make room at {path}: at least 2 GiB."
    return Finding(check=what, level="fault" if free < DISK_FAULT else "warning", sentence=f"only {gib}.", fix=fix)


def programs() -> list[Finding]:
    """Programs that the server runs."""
    found = []
    for name, package, why in (("git", "git", "every repository"), ("ssh", "openssh-client", "repositories over SSH")):
        if shutil.which(name) is None:
            sentence = f"the program {name} is not there; the server needs it for {why}."
            level: Any = "fault" if name == "git" else "warning"
            found.append(Finding(check=name, level=level, sentence=sentence, fix=f"On Debian: apt install {package}."))
    return found or [_fine("programs", "git and ssh are there.")]


def certificate_file(path: str, url: str) -> list[Finding]:
    """The certificate of the public port, as it stands in its file."""
    try:
        certificate = x509.load_pem_x509_certificate(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        sentence = f"{path} cannot be read: {error}."
        return [Finding(check="certificate", level="fault", sentence=sentence, fix="Correct tls_certificate.")]
    return certificate_findings(certificate, urlsplit(url).hostname or "", now())


def certificate_findings(certificate: x509.Certificate, name: str, moment: datetime) -> list[Finding]:
    """Whether browsers, forges and the command line will accept a certificate for this name at this moment."""
    found = []
    end = certificate.not_valid_after_utc
    if end < moment:
        fix = "Renew it, put it where tls_certificate says, and restart the server."
        found.append(_fault("certificate", f"it expired on {end:%Y-%m-%d}.", fix))
    elif end - moment < EXPIRES_SOON:
        sentence = f"it expires on {end:%Y-%m-%d}."
        found.append(Finding(check="certificate", level="warning", sentence=sentence, fix="Renew it, and restart."))
    if certificate.not_valid_before_utc > moment:
        begin = certificate.not_valid_before_utc
        found.append(_fault("certificate", f"it is valid from {begin:%Y-%m-%d %H:%M} UTC on.", "Set this clock: NTP."))
    if name and not covers(certificate, name):
        fix = f"Issue it with the subject alternative name {name}; the common name alone does not count."
        found.append(_fault("certificate", f"it does not name {name}.", fix))
    if certificate.issuer == certificate.subject:
        fix = (
            "Use one of a public authority (Let's Encrypt), or have every forge trust it: GitHub and GitLab hooks have "
            "`Enable SSL verification`; for Gitea and Forgejo set [webhook] SKIP_TLS_VERIFY = true in app.ini. "
            "People: waybill login URL --ca FILE."
        )
        sentence = "it is self-signed: forges refuse to deliver hooks to it."
        found.append(Finding(check="certificate", level="warning", sentence=sentence, fix=fix))
    return found or [_fine("certificate", f"valid for {name} until {end:%Y-%m-%d}.")]


def covers(certificate: x509.Certificate, name: str) -> bool:
    """Whether a subject alternative name fits (RFC 9525: a wildcard stands for the whole leftmost label)."""
    try:
        names: Any = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    except x509.ExtensionNotFound:
        return False
    try:
        return ipaddress.ip_address(name) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        pass
    wanted = name.lower().rstrip(".")
    parent = wanted.partition(".")[2]
    return any(known.lower() in (wanted, f"*.{parent}") for known in names.get_values_for_type(x509.DNSName))


def public_address(url: str, *, has_hooks: bool) -> list[Finding]:
    """Whether forges can reach the address that hooks name."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    found = []
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        local, loop = host == "localhost" or host.endswith((".local", ".internal", ".lan")), host == "localhost"
    else:
        local, loop = address.is_private, address.is_loopback
    if loop:
        fix = (
            "Set public_url in server.toml to an address that they reach, and listen to 0.0.0.0, behind a proxy or TLS."
        )
        sentence = f"{url} is reached from this machine only: forges and hosts elsewhere cannot."
        found.append(Finding(check="public address", level="warning", sentence=sentence, fix=fix))
    if local and (has_hooks or not loop):
        fix = (
            "GitLab: Admin area, Settings, Network, Outbound requests: switch on `Allow requests to the local network "
            "from webhooks and integrations`, or add the address to the allowlist there. Gitea and Forgejo: set "
            "[webhook] ALLOWED_HOST_LIST = private (loopback for this machine) in app.ini. GitHub.com cannot reach it."
        )
        sentence = (
            f"{host} is a local address: GitLab, Gitea and Forgejo deliver no hooks to it until they are told to."
        )
        found.append(Finding(check="hooks to a local address", level="warning", sentence=sentence, fix=fix))
    if parts.scheme == "http" and not loop:
        fix = "Set tls_certificate and tls_key, or put a proxy with TLS before it and set public_url to its address."
        found.append(
            Finding(
                check="encryption", level="warning", sentence=f"{url} is not encrypted: tokens can be read.", fix=fix
            )
        )
    return found or [_fine("public address", f"{url}.")]


def work(aside: Iterable[Work], struggling: Iterable[Work]) -> list[Finding]:
    """Work that keeps failing."""
    found = [
        _fault(
            "work set aside",
            f"{row.handler} {row.key} failed {row.attempts} times, last with: {row.error}",
            "Mend the cause, then: waybill doctor --retry.",
        )
        for row in aside
    ]
    found += [
        Finding(
            check="work failing",
            level="warning",
            sentence=f"{row.handler} {row.key} is tried again ({row.attempts}): {row.error}",
            fix="Nothing, if the cause goes away; it is set aside after 12 attempts.",
        )
        for row in struggling
    ]
    return found or [_fine("work", "nothing was set aside, nothing is failing.")]


def host_findings(host: Host) -> list[Finding]:
    """What a host's own words tell."""
    check = f"host {host.name}"
    found = []
    if not host.connected:
        when = f"since {host.seen}" if host.seen else "and never was"
        fix = (
            f"On {host.name}: systemctl status waybill-agent, and waybill agent status. "
            "The firewall must let it reach the agents' port of the server."
        )
        found.append(Finding(check=check, level="warning", sentence=f"it is not connected {when}.", fix=fix))
    told = msgspec.json.decode(host.facts, type=_Told) if host.facts else None
    if told and told.disk_free and told.disk_free < DISK_WARNING:
        found.append(disk(check, told.disk_free, f"{host.name}, where releases are kept"))
    if told and told.received:
        apart = _apart(told.at, told.received)
        if abs(apart) > SKEW:
            way = "ahead of" if apart > 0 else "behind"
            sentence = f"its clock is {abs(apart):.0f} s {way} the server's."
            found.append(_fault(check, sentence, f"Set up NTP on both: timedatectl set-ntp true on {host.name}."))
    return found or [_fine(check, "connected, clock and disk in order.")]


def hooks(
    known: Iterable[dict[str, str]], deliveries: dict[str, str], refused: dict[str, int], url: str
) -> list[Finding]:
    """Whether forges deliver."""
    found = []
    for row in known:
        if row["id"] not in deliveries:
            fix = (
                f"Let the forge test the hook, and read its list of recent deliveries. It must send to "
                f"{url}/hooks/{row['id']}; the sweep finds pushes meanwhile, later."
            )
            check = f"hook of {row['repository']}"
            sentence = f"{row['forge']} has delivered nothing yet, or not for 30 days."
            found.append(Finding(check=check, level="warning", sentence=sentence, fix=fix))
    for outcome, count in sorted(refused.items()):
        fix = _REFUSED.get(outcome, "The server's log names each one.")
        sentence = f"{count} deliveries were refused since the server began: {outcome.replace('-', ' ')}."
        found.append(Finding(check="hooks refused", level="warning", sentence=sentence, fix=fix))
    return found or [_fine("hooks", "all of them deliver, none was refused.")]


_REFUSED = {
    "unsigned": "Set the hook's secret in the forge: waybill hook create prints it once.",
    "wrong-signature": "The secret in the forge is another one: make the hook anew and copy what is printed.",
    "stale": "The clocks of forge and server are over 5 minutes apart: set up NTP on both.",
    "unknown-hook": "Compare the address in the forge with waybill hook list.",
    "media-type": "Choose application/json as the content type of the hook in the forge.",
    "too-large": "A push of that size is found by the sweep.",
}


def plugins() -> Finding:
    """What was found in the seams."""
    forges = ", ".join(sorted(Plugins[Any]("waybill.forge.adapters", "FORGE")))
    drivers = ", ".join(sorted(Plugins[Any]("waybill.drivers", "DRIVER")))
    files = sorted(path.stem for path in Path(automations.__path__[0]).glob("*.py") if path.stem != "__init__")
    return _fine("plug-ins", f"forges {forges}; drivers {drivers}; automations {', '.join(files)}.")


def _apart(theirs: str, ours: str) -> float:
    try:
        return (parse(theirs) - parse(ours)).total_seconds()
    except ValueError:
        return 0.0


def _fine(check: str, sentence: str) -> Finding:
    return Finding(check=check, level="fine", sentence=sentence)


def _fault(check: str, sentence: str, fix: str) -> Finding:
    return Finding(check=check, level="fault", sentence=sentence, fix=fix)
