"""``/api/rollouts``, ``/api/deploy`` and ``/api/rollback``."""

from __future__ import annotations

import msgspec
from litestar import get, post
from litestar.params import FromPath, FromQuery, JSONBody

from waybill.deploy import access
from waybill.deploy.access import Token
from waybill.deploy.events import HostReported
from waybill.deploy.model import ENDED, Rollout
from waybill.deploy.store import rollouts as store
from waybill.events import outbox
from waybill.infra.db import Connection
from waybill.web.api.common import Ours, Who
from waybill.web.context import Context
from waybill.wire.api import (
    CancelWanted,
    DeployWanted,
    RollbackWanted,
    RolloutDetail,
    RolloutHostInfo,
    RolloutInfo,
)


@get("/rollouts")
async def list_rollouts(
    context: Ours,
    token: Who,
    service: FromQuery[str | None] = None,
    environment: FromQuery[str | None] = None,
    states: FromQuery[str | None] = None,
    limit: FromQuery[int] = 50,
) -> list[RolloutInfo]:
    """Rollouts that the token sees, newest first; ``states`` are separated by commas."""
    access.require(token, "view")
    wanted = None if states is None else states.split(",")
    bounded = max(1, min(limit, 500))

    def read(connection: Connection) -> list[Rollout]:
        found = store.rollouts(connection, service, environment, wanted, 500)
        return [one for one in found if access.sees(token, one.service, one.environment)][:bounded]

    return [info(one) for one in await context.db.read(read)]


@get("/rollouts/{identity:str}")
async def show_rollout(context: Ours, token: Who, identity: FromPath[str]) -> RolloutDetail:
    """One rollout with its hosts; the first characters of its id suffice."""
    rollout = await _visible(context, token, identity)
    return await context.db.read(lambda connection: _detail(connection, rollout.id))


@post("/deploy")
async def deploy(context: Ours, token: Who, data: JSONBody[DeployWanted]) -> RolloutInfo:
    """Deploy a branch's head or a commit, within the grants."""
    access.require(token, "deploy", data.service, data.environment)
    return info(await context.deployments.deploy(data.service, data.environment, data.ref, token.actor))


@post("/rollback")
async def rollback(context: Ours, token: Who, data: JSONBody[RollbackWanted]) -> RolloutInfo:
    """Go back to a known-good release, with its own variables."""
    access.require(token, "deploy", data.service, data.environment)
    return info(await context.deployments.rollback(data.service, data.environment, data.to, token.actor))


@post("/rollouts/{identity:str}/cancel", status_code=200)
async def cancel(context: Ours, token: Who, identity: FromPath[str], data: JSONBody[CancelWanted]) -> RolloutInfo:
    """Stop a rollout, on its hosts too; hosts that had switched go back to what was good."""
    rollout = await _visible(context, token, identity)
    access.require(token, "deploy", rollout.service, rollout.environment)
    return info(await context.deployments.cancel(rollout.id, token.actor, data.reason[:500]))


def info(rollout: Rollout) -> RolloutInfo:
    """A rollout as people see it."""
    return msgspec.convert(rollout, RolloutInfo, from_attributes=True)


async def _visible(context: Context, token: Token, identity: str) -> Rollout:
    access.require(token, "view")
    rollout = await context.db.read(lambda connection: store.rollout(connection, identity))
    access.require(token, "view", rollout.service, rollout.environment)
    return rollout


def _detail(connection: Connection, identity: str) -> RolloutDetail:
    rollout = store.rollout(connection, identity)
    evidence: dict[str, str] = {}
    for event in reversed(outbox.latest_events(connection, 100, rollout.key)):
        body = event.body
        if isinstance(body, HostReported) and body.evidence and event.at >= rollout.created:
            evidence[body.host] = body.evidence
    hosts = [
        RolloutHostInfo(
            host=one.host,
            state=one.state,
            told=round(one.told, 3),
            away=round(one.away, 3),
            reason=one.reason,
            evidence=evidence.get(one.host, "") if one.reason else "",
        )
        for one in store.rollout_hosts(connection, identity)
    ]
    return RolloutDetail(rollout=info(rollout), hosts=hosts, ended=rollout.state in ENDED)


HANDLERS = [list_rollouts, show_rollout, deploy, rollback, cancel]
