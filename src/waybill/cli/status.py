"""``waybill status``: what runs where."""

from __future__ import annotations

from waybill.cli.output import Json, ago, emit, table, target


def status(of: str = "", /, *, json: Json = False) -> None:
    """Show what runs where, and what is under way.

    Args:
        of: Only this service, or service/environment.
        json: Print JSON.
    """
    from waybill.cli.client import Client
    from waybill.wire.api import EnvironmentStatus, Status

    service, environment = target(of) if "/" in of else (of, "")
    found = Client().call("GET", "/api/status", Status)

    def wanted(one: EnvironmentStatus) -> bool:
        return service in ("", one.service) and environment in ("", one.environment)

    shown = [one for one in found.environments if wanted(one)]
    if json:
        emit(Status(at=found.at, version=found.version, environments=shown, hosts=found.hosts))
        return
    rows = []
    for one in shown:
        name = f"{one.service}/{one.environment}"
        for host in one.hosts:
            health = host.health if host.connected else "not connected"
            rows.append((name, host.host, host.live_commit[:12] or "-", host.state, health, ago(host.at)))
            name = ""
        if not one.hosts:
            rows.append((name, "-", "-", "nothing yet", "-", "-"))
    nothing = f"Nothing is called {of}." if of else "Nothing is deployed yet, and nothing is granted."
    table(("SERVICE", "HOST", "COMMIT", "STATE", "HEALTH", "SAID"), rows, nothing)
    for one in shown:
        key = f"{one.service}/{one.environment}"
        for rollout in one.running:
            print(f"\n{key}: {rollout.commit[:12]} is {rollout.state} since {ago(rollout.created)} ({rollout.id})")
        if one.last and one.last.state in ("failed", "reverted"):
            print(f"\n{key}: {one.last.commit[:12]} {one.last.state} {ago(one.last.finished)}: {one.last.reason}")
        for warning in one.warnings:
            print(f"\n{key}: {warning}")
    if any(not one.hosts and not one.running for one in shown):
        print("\nA push deployed nothing? waybill events says why.")
    away = [host.name for host in found.hosts if not host.connected and not host.revoked]
    if away and not of:
        print(f"\nnot connected: {', '.join(away)}")
