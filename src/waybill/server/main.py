"""``waybill serve``: one process, two ports, one worker of the outbox; stops without dropping a request."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import msgspec
import uvicorn

from waybill.core.errors import ConflictError, WaybillError
from waybill.deploy import access
from waybill.deploy.store import access as access_store
from waybill.infra import logs
from waybill.infra.db import Connection
from waybill.infra.logs import log
from waybill.infra.settings import Settings
from waybill.server.closing import QUEUE_TIME, ignore_newcomers
from waybill.server.wiring import Parts, assemble, context
from waybill.web.agents import agents_app
from waybill.web.app import public_app
from waybill.web.client_certificate import ClientCertificateProtocol
from waybill.web.patience import PatientProtocol

GRACE = 10
"""Seconds that requests under way may take when the server stops."""
SWITCH = 0.0005
"""Seconds after which a database thread gives way to the event loop; with Python's 5 ms every answer waits for it."""


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: two servers share this process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(settings: Settings) -> int:
    """Run the server until SIGTERM or SIGINT; returns the exit status."""
    logs.configure(as_json=settings.log_json)
    sys.setswitchinterval(SWITCH)
    try:
        import uvloop

        uvloop.run(_serve(settings))
    except WaybillError as error:
        log.error("cannot start", reason=error.reason, hint=error.hint)
        return error.exit_code
    return 0


async def _serve(settings: Settings) -> None:
    public_socket = _bind(settings.listen, settings.port, "port")
    agents_socket = _bind(settings.agents_listen, settings.agents_port, "agents_port")
    settings = _with_addresses(settings, public_socket, agents_socket)
    parts = await assemble(settings)
    shared = context(parts)
    public = uvicorn.Config(public_app(shared), **_common(http=PatientProtocol), **_public_tls(settings))
    certificate, key = parts.authority.server_files([settings.agents_url])
    agents = uvicorn.Config(
        agents_app(parts.db, parts.hub, parts.reported, parts.mirrors, parts.blobs, shared.logs),
        **_common(http=ClientCertificateProtocol),
        ssl_certfile=certificate,
        ssl_keyfile=key,
        ssl_ca_certs=parts.authority.root_file,
        ssl_cert_reqs=ssl.CERT_REQUIRED,
    )
    servers = (_Server(public), _Server(agents))
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await _first_token(parts)
    tasks = [
        asyncio.create_task(servers[0].serve(sockets=[public_socket]), name="public port"),
        asyncio.create_task(servers[1].serve(sockets=[agents_socket]), name="agents' port"),
        asyncio.create_task(parts.dispatcher.run(), name="worker"),
        asyncio.create_task(parts.hub.run(), name="hub"),
    ]
    log.info("serving", public=settings.public_url, agents=settings.agents_url, data=settings.data)
    waiting = asyncio.create_task(stopping.wait())
    done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for listener in (public_socket, agents_socket):
        ignore_newcomers(listener)
    await asyncio.sleep(QUEUE_TIME)
    shared.stopping.set()
    await _stop(parts, servers, tasks)
    for task in done - {waiting}:
        task.result()  # a part that ended by itself ended by a fault: say which


async def _stop(parts: Parts, servers: tuple[_Server, _Server], tasks: list[asyncio.Task[None]]) -> None:
    log.info("stopping", seconds_at_most=GRACE)
    for server in servers:
        server.should_exit = True
    parts.dispatcher.stop()
    parts.hub.stop()
    await asyncio.wait(tasks[:3], timeout=GRACE + 2)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(parts.db.close)
    log.info("stopped")


def _common(http: Any) -> dict[str, Any]:
    return {
        "http": http,
        "lifespan": "off",
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "date_header": False,
        "backlog": 4096,
        "timeout_keep_alive": 75,
        "timeout_graceful_shutdown": GRACE,
    }


def _public_tls(settings: Settings) -> dict[str, Any]:
    if not settings.tls_certificate:
        return {}
    return {"ssl_certfile": settings.tls_certificate, "ssl_keyfile": settings.tls_key or None}


def _bind(address: str, port: int, setting: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((address, port))
    except OSError as error:
        raise ConflictError(
            f"cannot listen on {address} port {port}: {error.strerror}.", f"Set another `{setting}`."
        ) from error
    return made


def _with_addresses(settings: Settings, public: socket.socket, agents: socket.socket) -> Settings:
    scheme = "https" if settings.tls_certificate else "http"
    return msgspec.structs.replace(
        settings,
        port=public.getsockname()[1],
        agents_port=agents.getsockname()[1],
        public_url=settings.public_url or f"{scheme}://{_name(settings.listen)}:{public.getsockname()[1]}",
        agents_url=settings.agents_url or f"https://{_name(settings.agents_listen)}:{agents.getsockname()[1]}",
    )


def _name(address: str) -> str:
    if address in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return socket.getfqdn()
    return f"[{address}]" if ":" in address else address


async def _first_token(parts: Parts) -> None:
    """Print the first admin token, once, when there is no token at all; into a file where the output is the journal."""
    token, text, digest = access.issue("first admin", "admin")
    file = parts.settings.folder / "first-admin-token" if _is_journal(sys.stdout) else None

    def keep(connection: Connection) -> bool:
        if access_store.tokens(connection):
            return False
        if file is not None:  # before the token counts: a server that dies here makes another one
            file.unlink(missing_ok=True)
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
                opened.write(text + "\n")
        access_store.add_token(connection, token, digest, "waybill")
        return True

    if await parts.db.write(keep):
        login = f"waybill login {parts.settings.public_url}"
        if file is not None:
            sys.stdout.write(f"The first admin token is in {file}: {login} < {file} && rm {file}\n")
        else:
            sys.stdout.write(f"The first admin token, shown once:\n\n    {text}\n\n    {login}    # asks for it\n\n")
        sys.stdout.flush()


def _is_journal(output: TextIO) -> bool:
    """Whether what is written there ends up in the journal, see JOURNAL_STREAM in systemd.exec(5)."""
    try:
        found = os.fstat(output.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
