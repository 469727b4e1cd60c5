"""What the public port's handlers work with; ``server/wiring.py`` makes the one that there is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from waybill.deploy.pushes import Pushes
from waybill.deploy.reported import Reported
from waybill.deploy.service import Deployments
from waybill.infra.blobs import Blobs
from waybill.infra.ca import Authority
from waybill.infra.db import Database
from waybill.infra.keys import Keys
from waybill.infra.settings import Settings
from waybill.web.feed import Feed
from waybill.web.hooks import Hooks
from waybill.web.logs import LogHub
from waybill.web.metrics import Metrics
from waybill.wire.agent import LogsWanted


def _nobody(_host: str, _message: LogsWanted) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Context:
    """The collaborators of API, hooks and pages.

    Attributes:
        public_url: Address of this port as people and forges reach it, without a slash at its end.
        agents_url: Address of the agents' port.
        ask_host: Says something to a host over its open stream; False when it has none on this server.
        logs: Where log lines of hosts arrive for those who watch.
        feed: Wakes those who follow events.
        hooks: The addresses that forges deliver to.
        stopping: Set when the server begins to stop; open streams end then.
    """

    db: Database
    settings: Settings
    keys: Keys
    authority: Authority
    deployments: Deployments
    pushes: Pushes
    reported: Reported
    blobs: Blobs
    public_url: str
    agents_url: str
    feed: Feed
    hooks: Hooks
    ask_host: Callable[[str, LogsWanted], bool] = _nobody
    logs: LogHub = field(default_factory=LogHub)
    metrics: Metrics = field(default_factory=Metrics)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
