"""The pages on a real server, over what the real stores and rules were told."""

import asyncio
import contextlib
import dataclasses

import httpx2
import msgspec
import uvicorn
from litestar import Litestar

from waybill.core.clock import later, stamp
from waybill.core.ids import new_id
from waybill.deploy import access, advance, reported
from waybill.deploy.events import DeploymentRefused, HostEnrolled
from waybill.deploy.model import Grant, Host, Rollout
from waybill.deploy.store import access as access_store
from waybill.deploy.store import hosts, repositories, rollouts
from waybill.events import outbox
from waybill.infra.settings import Settings
from waybill.server import wiring
from waybill.web.pages import router
from waybill.wire.agent import Facts, Report


@contextlib.asynccontextmanager
async def waiting(database_url, folder):
    """The context of a real server without its ports, whose worker stands still: tests move rollouts on by hand."""
    parts = await wiring.assemble(Settings(data=str(folder), database=database_url, public_url="http://127.0.0.1"))
    yield wiring.context(parts)
    parts.db.close()


def again(what, **changed):
    """The same server, started another time."""
    return dataclasses.replace(what, stopping=asyncio.Event(), **changed)


@contextlib.asynccontextmanager
async def serving(what, port=0, app=None):
    """The pages behind uvicorn on a free port; yields the address."""
    config = uvicorn.Config(
        app or Litestar([router(what)], openapi_config=None, debug=False),
        port=port,
        log_level="error",
        lifespan="off",
        timeout_graceful_shutdown=5,
        ws="none",
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(10):
            while not server.started:
                await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        what.stopping.set()
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def visiting(address, text=None):
    """A browser's cookies without a browser; logged in when a token is given."""
    async with httpx2.AsyncClient(
        base_url=address,
        headers={"sec-fetch-site": "same-origin"},
        timeout=10,
        limits=httpx2.Limits(max_connections=300),
    ) as client:
        if text is not None:
            answer = await client.post("/login", data={"token": text, "next": "/"})
            assert answer.status_code == 303, answer.text
        yield client


async def new_token(db, role="admin", name="ada", **bounds):
    record, text, digest = access.issue(name, role, **bounds)
    await db.write(lambda c: access_store.add_token(c, record, digest, "test"))
    return record, text


def enrol(c, name, labels, *, connected=True, facts=None):
    identity = new_id()
    row = {"id": identity, "key": "k", "labels": "{}", "uses": 1, "expires": later(60), "actor": "test"}
    hosts.add_enrolment(c, row)
    hosts.add_host(c, identity, Host(name=name, labels=labels, recipient="age1x", fingerprint="ab:cd"), f"s{identity}")
    outbox.record(c, HostEnrolled(host=name, labels=labels, fingerprint="ab:cd"), f"host:{name}")
    if connected is not None:
        hosts.heard(c, [name], connected=connected)
    if facts is not None:
        hosts.put_facts(c, name, facts.arch, msgspec.json.encode(facts).decode())


def facts(**other):
    values = {"version": "0.1.0", "arch": "x86_64", "system": "Debian 12", "at": stamp(), "disk_free": 42 * 1024**3}
    return Facts(**values | other)


def grant(c, service, environment, labels, repository="team/hello"):
    repositories.put_grant(
        c,
        Grant(id="", repository=repository, service=service, environment=environment, branches=("main",), hosts=labels),
        "token:ada",
    )


def begin(c, service, environment, commit, names, *, warnings=(), repository="team/hello"):
    """Draw up a rollout; it waits."""
    identity = new_id()
    rollout = Rollout(
        id=identity, origin=identity, service=service, environment=environment, repository=repository, branch="main",
        commit=commit, file="waybill.yml", cause="push", actor="hook:1", state="waiting", created=stamp(),
    )  # fmt: skip
    advance.enqueue(c, rollout, list(names), list(warnings))
    return rollout


def go_on(c, rollout):
    """Have the rules move a rollout on; returns it as it is then."""
    advance.advance(c, rollout.service, rollout.environment)
    return rollouts.rollout(c, rollout.id)


def say(c, host, rollout, state, *, reason="", evidence="", health="healthy", took=120):
    """A host reports on what it was told last; the server's own intake writes it down."""
    told = rollouts.rollout(c, rollout.id)
    before = hosts.report_of(c, host, told.service, told.environment)
    good = rollouts.good(c, told.service, told.environment)
    back = told.state == "reverting" and good
    live = (told.sequence, rollouts.rollout(c, good).commit if back else told.commit)
    if state != "live":
        live = (before.live_sequence, before.live_commit) if before else (0, "")
    report = Report(
        service=told.service, environment=told.environment, sequence=told.sequence, state=state, at=stamp(),
        reason=reason, evidence=evidence, live_sequence=live[0], live_commit=live[1], health=health, took=took,
    )  # fmt: skip
    reported._keep(c, host, report)


def deploy(c, service, environment, commit, names, **other):
    """A whole rollout that goes well."""
    rollout = go_on(c, begin(c, service, environment, commit, names, **other))
    for name in names:
        say(c, name, rollout, "live")
    return go_on(c, rollout)


def refuse(c, **values):
    body = {"repository": "team/hello", "branch": "main", "commit": "e" * 40, "reason": "it may not.", "hint": "Ask."}
    outbox.record(c, DeploymentRefused(**body | values), "waybill")
