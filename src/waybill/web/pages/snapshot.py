"""One consistent look at the database: all that any page shows, read once and shared by everybody who watches."""

from __future__ import annotations

from collections.abc import Collection
from typing import get_args

import msgspec

from waybill.core.clock import stamp
from waybill.core.errors import NotFoundError
from waybill.deploy.access import Token
from waybill.deploy.model import ENDED, Grant, Host, Rollout, RolloutHost, RolloutState
from waybill.deploy.store import access, repositories
from waybill.deploy.store import hosts as host_store
from waybill.deploy.store import rollouts as rollout_store
from waybill.events import outbox
from waybill.events.model import Event
from waybill.events.outbox import Work
from waybill.infra.db import Connection
from waybill.wire.agent import Report

RECENT = 100
"""Rollouts, events and refusals that pages begin with."""
_UNENDED = [state for state in get_args(RolloutState) if state not in ENDED]


class View(msgspec.Struct, frozen=True):
    """What somebody looks at.

    Attributes:
        page: ``overview``, ``hosts``, ``rollouts``, ``timeline``, ``rollout`` or ``environment``.
        about: Id of a rollout, ``service/environment``, number of a page; empty where there is nothing to choose.
    """

    page: str
    about: str = ""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The state at one moment.

    Attributes:
        at: The server's clock.
        running: Rollouts that have not ended, newest first.
        recent: Newest rollouts, ended or not.
        members: Rollout id → its hosts; for running and good rollouts and those looked at.
        good: (service, environment) → the newest rollout that proved itself.
        created: Newest ``RolloutCreated`` events, newest first.
        about: ``service/environment`` → its newest rollouts and events, for those looked at.
        named: Id as asked for → rollout, for those looked at.
    """

    at: str
    tokens: dict[str, Token]
    hosts: list[Host]
    reports: list[tuple[str, Report]]
    grants: list[Grant]
    running: list[Rollout]
    recent: list[Rollout]
    members: dict[str, list[RolloutHost]]
    good: dict[tuple[str, str], Rollout]
    events: list[Event]
    created: list[Event]
    refused: list[Event]
    aside: list[Work]
    about: dict[str, tuple[list[Rollout], list[Event]]]
    named: dict[str, Rollout]


def load(connection: Connection, views: Collection[View] = ()) -> Snapshot:
    """Read everything that these views need."""
    running = rollout_store.rollouts(connection, states=_UNENDED)
    good = rollout_store.all_good(connection)
    named: dict[str, Rollout] = {}
    for view in views:
        if view.page == "rollout":
            try:
                named[view.about] = rollout_store.rollout(connection, view.about)
            except NotFoundError:
                continue
    keys = {view.about for view in views if view.page == "environment"}
    keys |= {rollout.key for rollout in named.values()}
    wanted = {rollout.id for rollout in [*running, *good.values(), *named.values()]}
    return Snapshot(
        at=stamp(),
        tokens={token.id: token for token in access.tokens(connection)},
        hosts=host_store.hosts(connection),
        reports=host_store.reports(connection),
        grants=repositories.grants(connection),
        running=running,
        recent=rollout_store.rollouts(connection, limit=RECENT),
        members=rollout_store.all_hosts(connection, wanted),
        good=good,
        events=outbox.latest_events(connection, RECENT),
        created=outbox.latest_events(connection, 500, kinds=["RolloutCreated"]),
        refused=outbox.latest_events(connection, 20, kinds=["DeploymentRefused"]),
        aside=outbox.set_aside(connection),
        about={key: _about(connection, key) for key in keys},
        named=named,
    )


def _about(connection: Connection, key: str) -> tuple[list[Rollout], list[Event]]:
    service, _, environment = key.partition("/")
    return (
        rollout_store.rollouts(connection, service, environment, limit=RECENT),
        outbox.latest_events(connection, 2 * RECENT, subject=key),
    )
