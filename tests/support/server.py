"""A real server's public port, on a free port of this machine, with a real database; and the real command line."""

import asyncio
import json
import os
import socket
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import uvicorn

from waybill.deploy import access
from waybill.deploy.adapters.git import Mirrors
from waybill.deploy.pushes import Pushes
from waybill.deploy.reported import Reported
from waybill.deploy.service import Deployments
from waybill.deploy.store import access as access_store
from waybill.infra.blobs import Blobs
from waybill.infra.ca import Authority
from waybill.infra.keys import Keys
from waybill.infra.settings import Settings
from waybill.web.app import public_app
from waybill.web.context import Context
from waybill.web.feed import Feed
from waybill.web.hooks import Hooks
from waybill.web.metrics import Metrics


@dataclass
class Served:
    """A server under test; ``asked`` is what hosts were asked, each of ``hosts_here`` counts as connected."""

    context: Context
    url: str
    admin: str
    client: httpx2.AsyncClient
    folder: Path
    hosts_here: set = field(default_factory=set)
    asked: list = field(default_factory=list)

    async def token(self, role, services="*", environments="*", name=None, expires=""):
        """Text of a fresh token."""
        made, text, digest = access.issue(name or role, role, services, environments, expires)
        await self.context.db.write(lambda c: access_store.add_token(c, made, digest, "test"))
        return text

    async def call(self, method, path, body=None, *, token=None, **options):
        """(status, decoded answer) as the admin, or with another token; ``token=""`` sends none."""
        text = self.admin if token is None else token
        headers = {"authorization": f"Bearer {text}"} if text else {}
        response = await self.client.request(method, path, json=body, headers=headers, **options)
        return response.status_code, response.json() if response.content else None

    async def cli(self, *words, token=None, stdin=None, **more):
        """(status, standard output, standard error) of ``waybill WORDS`` in a process of its own."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "WAYBILL_SERVER": self.url,
            "WAYBILL_TOKEN": self.admin if token is None else token,
            "PYTHONWARNINGS": "error",
            **more,
        }
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-c", "from waybill.cli.main import main; main()", *words],
            env={name: value for name, value in environment.items() if value},
            cwd=self.folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate((stdin or "").encode())
        return process.returncode, out.decode(), err.decode()

    async def cli_json(self, *words, **options):
        """What ``waybill WORDS --json`` prints; it has to succeed."""
        status, out, err = await self.cli(*words, "--json", **options)
        assert status == 0, err
        return json.loads(out)


class _Quiet(uvicorn.Server):
    """uvicorn that leaves the process's signals alone."""

    def capture_signals(self):
        import contextlib

        return contextlib.nullcontext()


def make_context(db, folder, public_url, agents_url="https://127.0.0.1:1", **more):
    """The collaborators, as the server's own wiring makes them."""
    keys = Keys(folder)
    pushes = Pushes(db, Mirrors(folder, keys))
    metrics = Metrics()
    return Context(
        db=db,
        settings=Settings(data=str(folder)),
        keys=keys,
        authority=Authority(keys),
        deployments=Deployments(db, pushes),
        pushes=pushes,
        reported=Reported(db),
        blobs=Blobs(folder),
        feed=Feed(db),
        metrics=metrics,
        hooks=Hooks(db, keys, metrics),
        public_url=public_url,
        agents_url=agents_url,
        **more,
    )


@asynccontextmanager
async def serving(db, folder):
    """Serve the public app until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    asked, here = [], set()

    def ask(host, message):
        asked.append((host, message))
        return host in here

    context = make_context(db, folder, url, url, ask_host=ask)
    config = uvicorn.Config(
        public_app(context), lifespan="off", log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=3
    )
    server = _Quiet(config)
    task = asyncio.create_task(server.serve(sockets=[bound]))
    made, admin, digest = access.issue("the admin", "admin")
    await db.write(lambda c: access_store.add_token(c, made, digest, "test"))
    async with httpx2.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
        async with asyncio.timeout(20):
            while not server.started:
                await asyncio.sleep(0.01)
        served = Served(context, url, admin, client, folder, here, asked)
        try:
            yield served
        finally:
            context.stopping.set()
            server.should_exit = True
            await task
            bound.close()
