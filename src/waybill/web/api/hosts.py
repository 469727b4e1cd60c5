"""``/api/hosts`` and ``/api/sealed``: hosts, their labels, and the keys that are sealed to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec
from litestar import delete, get, post, put
from litestar.params import FromPath, JSONBody

from waybill.core.errors import InvalidInputError
from waybill.deploy import access
from waybill.deploy.access import Token
from waybill.deploy.model import Host
from waybill.deploy.store import hosts as store
from waybill.infra.db import Connection
from waybill.web.api.common import NAME, Ours, Who, changed, labelled, named, words
from waybill.wire.agent import Facts, Report
from waybill.wire.api import HostInfo, Labels, Sealed, ServiceOf

ARMOR = "-----BEGIN AGE ENCRYPTED FILE-----"


@get("/hosts")
async def list_hosts(context: Ours, token: Who) -> list[HostInfo]:
    """The hosts that the token sees: all, or those on which its services are."""
    access.require(token, "view")
    found, reports = await context.db.read(lambda connection: (store.hosts(connection), store.reports(connection)))
    return visible(token, found, reports)


@get("/hosts/{name:str}")
async def show_host(context: Ours, token: Who, name: FromPath[str]) -> HostInfo:
    """One host; whoever may see hosts may ask for its recipient, to seal a key to it."""
    access.require(token, "view")
    host, reports = await context.db.read(
        lambda connection: (store.host(connection, name), store.reports(connection)),
    )
    return info(host, [report for owner, report in reports if owner == name and _seen(token, report)])


@put("/hosts/{name:str}/labels")
async def put_labels(context: Ours, token: Who, name: FromPath[str], data: JSONBody[Labels]) -> HostInfo:
    """Give a host other labels; what runs there keeps running."""
    access.require(token, "administer")
    labelled(data.labels)

    def keep(connection: Connection) -> Host:
        store.set_labels(connection, name, data.labels)
        changed(connection, "host", name, f"labels are {words(data.labels)}", token)
        return store.host(connection, name)

    return info(await context.db.write(keep), [])


@post("/hosts/{name:str}/revoke", status_code=204)
async def revoke_host(context: Ours, token: Who, name: FromPath[str]) -> None:
    """Refuse the host's certificate from now on; what runs there keeps running."""
    access.require(token, "administer")

    def revoke(connection: Connection) -> None:
        store.revoke_host(connection, name)
        changed(connection, "host", name, "revoked; keys sealed to it are forgotten", token)

    await context.db.write(revoke)


@post("/hosts/{name:str}/remove", status_code=204)
async def remove_service(context: Ours, token: Who, name: FromPath[str], data: JSONBody[ServiceOf]) -> None:
    """Stop a service on a host and delete its releases there: the one instruction that does."""
    access.require(token, "administer", data.service, data.environment)
    await context.deployments.remove(name, data.service, data.environment, token.actor)


@get("/sealed/{service:str}/{environment:str}")
async def list_sealed(context: Ours, token: Who, service: FromPath[str], environment: FromPath[str]) -> dict[str, str]:
    """Host → the environment's age identity, sealed to it."""
    access.require(token, "view", service, environment)
    return await context.db.read(lambda connection: store.sealed(connection, service, environment))


@put("/sealed/{service:str}/{environment:str}/{name:str}", status_code=204)
async def put_sealed(
    context: Ours,
    token: Who,
    service: FromPath[str],
    environment: FromPath[str],
    name: FromPath[str],
    data: JSONBody[Sealed],
) -> None:
    """Keep the environment's age identity as sealed to a host."""
    access.require(token, "administer", named("service", service, NAME), named("environment", environment, NAME))
    if not data.armor.strip().startswith(ARMOR) or len(data.armor) > 64 * 1024:
        raise InvalidInputError("a sealed key is an age file in armor.", "waybill keys grant makes it.")

    def keep(connection: Connection) -> None:
        store.put_sealed(connection, service, environment, name, data.armor, token.actor)
        changed(connection, "key", f"{service}/{environment}", f"sealed to {name}", token)

    await context.db.write(keep)


@delete("/sealed/{service:str}/{environment:str}/{name:str}", status_code=204)
async def drop_sealed(
    context: Ours, token: Who, service: FromPath[str], environment: FromPath[str], name: FromPath[str]
) -> None:
    """Forget the key that is sealed to a host; nothing happens when there is none."""
    access.require(token, "administer", service, environment)

    def drop(connection: Connection) -> None:
        if name in store.sealed(connection, service, environment):
            store.drop_sealed(connection, service, environment, name)
            changed(connection, "key", f"{service}/{environment}", f"taken back from {name}", token)

    await context.db.write(drop)


def visible(token: Token, hosts: Iterable[Host], reports: Iterable[tuple[str, Report]]) -> list[HostInfo]:
    """The hosts that a token sees, with what it sees of them."""
    by_host: defaultdict[str, list[Report]] = defaultdict(list)
    for name, report in reports:
        if _seen(token, report):
            by_host[name].append(report)
    everything = token.services == token.environments == "*"
    return [info(host, by_host[host.name]) for host in hosts if everything or by_host[host.name]]


def info(host: Host, reports: Iterable[Report]) -> HostInfo:
    """A host as people see it."""
    facts = msgspec.json.decode(host.facts, type=Facts) if host.facts else Facts(version="", arch="", system="", at="")
    return HostInfo(
        name=host.name,
        labels=host.labels,
        connected=host.connected,
        seen=host.seen,
        fingerprint=host.fingerprint,
        recipient=host.recipient,
        revoked=host.revoked,
        arch=host.arch,
        system=facts.system,
        version=facts.version,
        disk_free=facts.disk_free,
        services=sorted(f"{report.service}/{report.environment}" for report in reports if report.live_sequence),
    )


def _seen(token: Token, report: Report) -> bool:
    return access.sees(token, report.service, report.environment)


HANDLERS = [
    list_hosts, show_host, put_labels, revoke_host, remove_service, list_sealed, put_sealed, drop_sealed,
]  # fmt: skip
