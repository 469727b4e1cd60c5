"""``waybill deploy``, ``rollback``, ``cancel`` and ``rollout``: versions going to environments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cyclopts

from waybill.cli.output import Json, ago, emit, emit_line, table, target
from waybill.core.errors import WaybillError

if TYPE_CHECKING:
    from waybill.cli.client import Client
    from waybill.wire.api import RolloutDetail, RolloutInfo

app = cyclopts.App(
    name="waybill rollout", help="List rollouts, show or follow one.", help_format="plaintext", version_flags=[]
)


class EndedOtherwiseError(WaybillError):
    """A rollout that was followed ended, and its version is not live."""

    exit_code = 8


def deploy(of: str, ref: str = "main", /, *, wait: bool = True, json: Json = False) -> None:
    """Deploy a branch's head or a commit, and follow it until it is live.

    Args:
        of: service/environment.
        ref: Branch or commit.
        wait: Follow it; --no-wait returns at once.
        json: Print JSON.
    """
    from waybill.cli.client import Client
    from waybill.wire.api import DeployWanted, RolloutInfo

    service, environment = target(of)
    client = Client(timeout=150)
    wanted = DeployWanted(service=service, environment=environment, ref=ref)
    _begun(client, client.call("POST", "/api/deploy", RolloutInfo, wanted), wait=wait, json=json)


def rollback(of: str, /, *, to: str = "", wait: bool = True, json: Json = False) -> None:
    """Go back to a known-good release with its own variables, and follow it until it is live.

    Args:
        of: service/environment.
        to: Rollout or commit to go back to; without it, the release before the present one.
        wait: Follow it; --no-wait returns at once.
        json: Print JSON.
    """
    from waybill.cli.client import Client
    from waybill.wire.api import RollbackWanted, RolloutInfo

    service, environment = target(of)
    client = Client(timeout=150)
    wanted = RollbackWanted(service=service, environment=environment, to=to)
    _begun(client, client.call("POST", "/api/rollback", RolloutInfo, wanted), wait=wait, json=json)


def cancel(what: str, /, *, reason: str = "", json: Json = False) -> None:
    """Stop a rollout, on its hosts too; hosts that had switched go back to what was good.

    Args:
        what: A rollout, or service/environment for the one that is under way.
        reason: Why, for the timeline.
        json: Print JSON.
    """
    from waybill.cli.client import Client
    from waybill.core.errors import NotFoundError
    from waybill.wire.api import CancelWanted, RolloutInfo

    client = Client()
    identity = what
    if "/" in what:
        service, environment = target(what)
        running = client.call(
            "GET",
            "/api/rollouts",
            list[RolloutInfo],
            service=service,
            environment=environment,
            states="waiting,building,running,reverting",
        )
        if not running:
            raise NotFoundError(f"nothing is under way in {what}.", "waybill rollout list shows what was.")
        identity = running[0].id
    made = client.call("POST", f"/api/rollouts/{identity}/cancel", RolloutInfo, CancelWanted(reason=reason))
    if json:
        emit(made)
        return
    print(f"{made.service}/{made.environment} {made.commit[:12]} is {made.state}: {made.reason}")


@app.command(name="list")
def list_rollouts(of: str = "", /, *, limit: int = 20, json: Json = False) -> None:
    """List rollouts, newest first.

    Args:
        of: Only this service, or service/environment.
        limit: How many at most.
        json: Print JSON.
    """
    from waybill.cli.client import Client
    from waybill.wire.api import RolloutInfo

    service, environment = target(of) if "/" in of else (of or None, None)
    found = Client().call(
        "GET", "/api/rollouts", list[RolloutInfo], service=service, environment=environment, limit=limit
    )
    if json:
        emit(found)
        return
    rows = (
        (
            one.id,
            f"{one.service}/{one.environment}",
            one.commit[:12],
            one.branch,
            one.state,
            one.cause,
            one.actor,
            ago(one.created),
        )
        for one in found
    )
    columns = ("ROLLOUT", "SERVICE", "COMMIT", "BRANCH", "STATE", "CAUSE", "BY", "BEGUN")
    table(columns, rows, "There were no rollouts yet.")


@app.command
def show(identity: str, /, *, follow: bool = False, json: Json = False) -> None:
    """Show a rollout and its hosts.

    Args:
        identity: Its id.
        follow: Stay until it has ended.
        json: Print JSON.
    """
    from waybill.cli.client import Client
    from waybill.wire.api import RolloutDetail

    client = Client()
    detail = client.call("GET", f"/api/rollouts/{identity}", RolloutDetail)
    if follow and not detail.ended:
        _follow(client, detail.rollout.id, json=json)
        return
    if json:
        emit(detail)
        return
    one = detail.rollout
    print(f"{one.service}/{one.environment} {one.commit[:12]} ({one.branch}): {one.state}")
    print(f"  begun {ago(one.created)} by {one.actor} ({one.cause}), rollout {one.id}")
    if one.reason:
        print(f"  {one.reason}")
    rows = ((host.host, host.state, host.reason or "-") for host in detail.hosts)
    table(("HOST", "STATE", "REASON"), rows, "It has no hosts.")
    for host in detail.hosts:
        if host.evidence:
            print(f"\n{host.host} saw:\n{host.evidence.rstrip()}")


def _begun(client: Client, made: RolloutInfo, *, wait: bool, json: bool) -> None:
    if wait:
        _follow(client, made.id, json=json)
    elif json:
        emit(made)
    else:
        print(f"{made.service}/{made.environment}: {made.commit[:12]} is {made.state}, rollout {made.id}")


def _follow(client: Client, identity: str, *, json: bool) -> None:
    """Show a rollout until it has ended.

    Raises:
        EndedOtherwiseError: Its version is not live.
    """
    from waybill.cli.progress import follow

    detail = follow(client, identity, silent=json)
    one = detail.rollout
    if json:
        emit_line(detail)
    if one.state != "done":
        raise EndedOtherwiseError(
            f"{one.service}/{one.environment} {one.commit[:12]} is {one.state}: {one.reason or 'no reason was given'}",
            _next(detail),
        )


def _next(detail: RolloutDetail) -> str:
    if any(host.evidence for host in detail.hosts):
        return f"waybill rollout show {detail.rollout.id} shows what the hosts saw."
    return f"waybill events --about {detail.rollout.service}/{detail.rollout.environment} shows how it went."
