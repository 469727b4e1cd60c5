"""``waybill hosts``: the machines with the agent."""

from __future__ import annotations

import cyclopts

from waybill.cli.output import Json, ago, emit, table, target
from waybill.cli.output import labels as parsed

app = cyclopts.App(
    name="waybill hosts",
    help="List hosts, change their labels, revoke them, take services off them.",
    help_format="plaintext",
    version_flags=[],
)


@app.default
def list_hosts(*, json: Json = False) -> None:
    """List hosts, change their labels, revoke them, take services off them.

    Args:
        json: Print JSON.
    """
    from waybill.cli.client import Client
    from waybill.wire.api import HostInfo

    found = Client().call("GET", "/api/hosts", list[HostInfo])
    if json:
        emit(found)
        return
    rows = (
        (
            host.name,
            "revoked" if host.revoked else ("connected" if host.connected else f"away, seen {ago(host.seen)}"),
            " ".join(f"{name}={value}" for name, value in sorted(host.labels.items())) or "-",
            " ".join(host.services) or "-",
            host.fingerprint,
        )
        for host in found
    )
    nothing = "No host is enrolled yet: waybill enroll."
    table(("HOST", "STATE", "LABELS", "SERVICES", "KEY"), rows, nothing)


app.command(list_hosts, name="list", help="List hosts.")


@app.command
def labels(name: str, pairs: list[str], /, *, json: Json = False) -> None:
    """Set all labels of a host; what runs there keeps running.

    Args:
        name: The host.
        pairs: The labels that it has from now on, as name=value.
        json: Print JSON.
    """
    from waybill.cli.client import Client
    from waybill.wire.api import HostInfo, Labels

    made = Client().call("PUT", f"/api/hosts/{name}/labels", HostInfo, Labels(labels=parsed(pairs)))
    if json:
        emit(made)
        return
    print(f"{name} has {' '.join(f'{key}={value}' for key, value in sorted(made.labels.items()))}.")


@app.command
def revoke(name: str, /, *, json: Json = False) -> None:
    """Refuse a host from now on; what runs there keeps running.

    Args:
        name: The host.
        json: Print JSON.
    """
    from waybill.cli.client import Client

    Client().call("POST", f"/api/hosts/{name}/revoke")
    if json:
        emit({"revoked": name})
        return
    print(f"{name} may not connect any more; what runs there keeps running.")
    print("It has read the variables of its environments: rotate them with waybill keys revoke and waybill rotate.")


@app.command(name="remove-service")
def remove_service(name: str, of: str, /, *, json: Json = False) -> None:
    """Stop a service on a host and delete its releases there.

    Args:
        name: The host.
        of: service/environment.
        json: Print JSON.
    """
    from waybill.cli.client import Client
    from waybill.wire.api import ServiceOf

    service, environment = target(of)
    Client().call("POST", f"/api/hosts/{name}/remove", body=ServiceOf(service=service, environment=environment))
    if json:
        emit({"host": name, "removed": of})
        return
    print(f"{name} is told to stop {of} and delete its releases; waybill status shows when it has.")
