"""Everything of the server put together: plain constructor calls, in this one file."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import sqlalchemy as sa

from waybill.automations import deploy_on_push, file_races
from waybill.core.ids import new_id
from waybill.deploy import advance
from waybill.deploy.actions import StartRollouts, SyncRepository
from waybill.deploy.adapters.git import Mirrors
from waybill.deploy.pushes import SWEEP, SYNC, Pushes
from waybill.deploy.reported import Reported
from waybill.deploy.service import Deployments
from waybill.deploy.store import access, hosts, repositories, rollouts
from waybill.events import outbox
from waybill.events.dispatch import Dispatcher
from waybill.events.model import Event
from waybill.events.outbox import Work
from waybill.infra import migrate
from waybill.infra.blobs import Blobs
from waybill.infra.ca import Authority
from waybill.infra.db import Connection, Database, metadata, upsert
from waybill.infra.keys import Keys
from waybill.infra.settings import Settings
from waybill.races import service as races
from waybill.races import store as race_store
from waybill.races.actions import FileRaces
from waybill.web.context import Context
from waybill.web.feed import Feed
from waybill.web.hooks import Hooks
from waybill.web.hub import Hub
from waybill.web.metrics import Metrics

TABLES = (access, hosts, repositories, rollouts, outbox, race_store)
"""The modules whose tables make up the database; importing them registers the tables."""
AUTOMATIONS = (deploy_on_push, file_races)

server_table = sa.Table("server", metadata, sa.Column("id", sa.String(36), primary_key=True))


@dataclass(frozen=True)
class Parts:
    """The collaborators of a running server."""

    settings: Settings
    db: Database
    keys: Keys
    authority: Authority
    blobs: Blobs
    mirrors: Mirrors
    pushes: Pushes
    deployments: Deployments
    reported: Reported
    dispatcher: Dispatcher
    hub: Hub
    server: str


async def assemble(settings: Settings) -> Parts:
    """Open the data folder and the database, bring it up to date, and put the server together."""
    settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    db = Database(settings.database_url)
    await asyncio.to_thread(migrate.upgrade, db, settings.folder)
    server = await db.write(_identity)
    keys = Keys(settings.folder)
    mirrors = Mirrors(settings.folder, keys)
    pushes = Pushes(db, mirrors)
    deployments = Deployments(db, pushes)
    dispatcher = Dispatcher(db)
    parts = Parts(
        settings=settings,
        db=db,
        keys=keys,
        authority=Authority(keys),
        blobs=Blobs(settings.folder),
        mirrors=mirrors,
        pushes=pushes,
        deployments=deployments,
        reported=Reported(db),
        dispatcher=dispatcher,
        hub=Hub(db, server),
        server=server,
    )
    dispatcher.handles(SYNC, pushes.sync)
    dispatcher.handles(SWEEP, pushes.sweep, every=settings.sweep)
    dispatcher.handles(advance.HANDLER, deployments.advance)
    filed = races.Races(db, settings.folder)
    dispatcher.handles(races.HANDLER, filed.file)
    dispatcher.handles(races.SWEEP, filed.sweep, every=races.EVERY)

    async def sync(action: SyncRepository, _event: Event, _work: Work) -> None:
        await db.write(lambda connection: outbox.wake(connection, SYNC, action.repository))

    async def start(_action: StartRollouts, event: Event, _work: Work) -> None:
        await pushes.start(event)

    async def file(_action: FileRaces, _event: Event, _work: Work) -> None:
        await db.write(lambda connection: outbox.wake(connection, races.HANDLER, races.KEY))

    dispatcher.performs(SyncRepository, sync)
    dispatcher.performs(FileRaces, file)
    dispatcher.performs(StartRollouts, start)
    return parts


def context(parts: Parts) -> Context:
    """What the public port's handlers work with."""
    metrics = Metrics()
    return Context(
        db=parts.db,
        settings=parts.settings,
        keys=parts.keys,
        authority=parts.authority,
        deployments=parts.deployments,
        pushes=parts.pushes,
        reported=parts.reported,
        blobs=parts.blobs,
        feed=Feed(parts.db),
        metrics=metrics,
        hooks=Hooks(parts.db, parts.keys, metrics),
        public_url=parts.settings.public_url,
        agents_url=parts.settings.agents_url,
        ask_host=parts.hub.ask,
    )


def _identity(connection: Connection) -> str:
    known = connection.execute(sa.select(server_table.c.id)).scalar()
    if known is None:
        known = new_id()
        connection.execute(upsert(connection, server_table).values(id=known))
    return known
