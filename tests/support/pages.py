"""The pages on a real server, over what the real stores were told."""

import asyncio
import contextlib
import dataclasses

import httpx2
import uvicorn
from litestar import Litestar

from waybill.core.clock import later, stamp
from waybill.core.ids import new_id
from waybill.deploy import access
from waybill.deploy.events import DeploymentRefused, HostEnrolled, HostReported, RolloutChanged, RolloutCreated
from waybill.deploy.model import Grant, Host, Rollout
from waybill.deploy.service import Deployments
from waybill.deploy.store import access as access_store
from waybill.deploy.store import hosts, repositories, rollouts
from waybill.events import outbox
from waybill.infra.db import Database
from waybill.infra.keys import Keys
from waybill.web.pages import router
from waybill.wire.agent import Facts, Report


@dataclasses.dataclass(frozen=True)
class Needs:
    db: Database
    keys: Keys
    deployments: Deployments
    public_url: str = "http://127.0.0.1"
    stopping: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


def needs(db, folder, **other):
    return Needs(db=db, keys=Keys(folder), deployments=other.pop("deployments", Deployments(db)), **other)


@contextlib.asynccontextmanager
async def serving(what, port=0):
    """The pages behind uvicorn on a free port; yields the address."""
    app = Litestar([router(what)], openapi_config=None, debug=False)
    config = uvicorn.Config(app, port=port, log_level="error", lifespan="off", timeout_graceful_shutdown=5, ws="none")
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
    async with httpx2.AsyncClient(base_url=address, headers={"sec-fetch-site": "same-origin"}, timeout=10) as client:
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
        import msgspec

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


def begin(c, service, environment, commit, names, *, warnings=(), sequence=0, repository="team/hello"):
    rollout = Rollout(
        id=new_id(), service=service, environment=environment, repository=repository, branch="main", commit=commit,
        file="waybill.yml", cause="push", actor="hook:1", state="waiting", created=stamp(), sequence=sequence,
    )  # fmt: skip
    rollouts.add_rollout(c, rollout, names)
    outbox.record(
        c,
        RolloutCreated(
            rollout=rollout.id, service=service, environment=environment, commit=commit, cause="push",
            hosts=list(names), warnings=list(warnings),
        ),
        "hook:1",
    )  # fmt: skip
    return rollout


def move(c, rollout, state, reason=""):
    if state in ("done", "failed", "reverted", "cancelled"):
        rollouts.finish(c, rollout.id, state, reason)
        if state == "done":
            rollouts.next_sequence(c, rollout.service, rollout.environment)
            rollouts.set_good(c, rollout.service, rollout.environment, rollout.id)
    else:
        rollouts.update_rollout(c, rollout.id, state=state, reason=reason)
    outbox.record(
        c,
        RolloutChanged(
            rollout=rollout.id, service=rollout.service, environment=rollout.environment, commit=rollout.commit,
            state=state, reason=reason,
        ),
        "waybill",
    )  # fmt: skip


def say(c, host, rollout, state, *, reason="", evidence="", health="healthy", live=None, took=120):
    """A host reports, as the server's own intake writes it down."""
    sequence, commit = (
        live if live is not None else ((rollout.sequence, rollout.commit) if state == "live" else (0, ""))
    )
    report = Report(
        service=rollout.service, environment=rollout.environment, sequence=rollout.sequence, state=state, at=stamp(),
        reason=reason, evidence=evidence, live_sequence=sequence, live_commit=commit, health=health, took=took,
    )  # fmt: skip
    hosts.put_report(c, host, report)
    rollouts.set_host_state(c, host, (rollout.service, rollout.environment), rollout.sequence, state, reason)
    if state in ("live", "failed", "refused", "held"):
        outbox.record(
            c,
            HostReported(
                host=host, service=rollout.service, environment=rollout.environment, sequence=rollout.sequence,
                state=state, commit=rollout.commit, reason=reason, evidence=evidence, took=took,
            ),
            f"host:{host}",
        )  # fmt: skip


def deploy(c, service, environment, commit, names, sequence, **other):
    """A whole rollout that went well."""
    rollout = begin(c, service, environment, commit, names, sequence=sequence, **other)
    move(c, rollout, "running")
    rollouts.set_told(c, rollout.id, names, sequence)
    for name in names:
        say(c, name, rollout, "live")
    move(c, rollout, "done")
    return rollout


def refuse(c, **values):
    body = {"repository": "team/hello", "branch": "main", "commit": "e" * 40, "reason": "it may not.", "hint": "Ask."}
    outbox.record(c, DeploymentRefused(**body | values), "waybill")
