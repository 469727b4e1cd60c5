"""Figures for Prometheus, in a registry of our own, and the outermost layer of the port that measures requests.

Each request gets an id, which the log and a problem document carry; a body that comes too slowly is given up.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import structlog
from litestar.types import ASGIApp
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from waybill.core.ids import new_id
from waybill.deploy.store import hosts, rollouts
from waybill.events import outbox
from waybill.infra.db import Connection, Database

CHUNK_WITHIN = 30.0
"""Seconds that a sender has for each next part of a body."""
BODY_WITHIN = 60.0
"""Seconds that a sender has for a whole body, beside uploads."""
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """What is counted in this process, and what is read from the database when somebody asks."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "waybill_requests", "Requests answered.", ["route", "method", "status"], registry=registry
        )
        self._seconds = Histogram(
            "waybill_request_seconds", "Seconds until the answer began.", ["route"], buckets=BUCKETS, registry=registry
        )
        self._refused = Counter("waybill_hooks_refused", "Deliveries refused.", ["reason"], registry=registry)
        self._accepted = Counter("waybill_hooks_accepted", "Deliveries taken.", ["forge"], registry=registry)
        self._depth = Gauge("waybill_outbox_due", "Rows of work that are due or under way.", registry=registry)
        self._aside = Gauge("waybill_outbox_aside", "Rows of work that were set aside.", registry=registry)
        self._age = Gauge("waybill_outbox_age_seconds", "How long the oldest due row has waited.", registry=registry)
        self._rollouts = Gauge("waybill_rollouts", "Rollouts by state.", ["state"], registry=registry)
        self._hosts = Gauge("waybill_hosts", "Enrolled hosts, revoked ones left out.", registry=registry)
        self._connected = Gauge("waybill_hosts_connected", "Hosts whose stream is open.", registry=registry)
        self._reasons: dict[str, int] = {}

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def hook_refused(self, reason: str) -> None:
        """Count a refused delivery; ``reason`` is one of few words, such as ``wrong-signature``."""
        self._refused.labels(reason).inc()
        self._reasons[reason] = self._reasons.get(reason, 0) + 1

    def hook_accepted(self, forge: str) -> None:
        """Count a delivery that was taken."""
        self._accepted.labels(forge).inc()

    @property
    def refusals(self) -> dict[str, int]:
        """Deliveries refused since this process began, by reason."""
        return dict(self._reasons)

    async def page(self, db: Database) -> bytes:
        """The text that Prometheus reads."""
        totals, states, (known, connected) = await db.read(_figures)
        self._depth.set(totals.due)
        self._aside.set(totals.aside)
        self._age.set(totals.age)
        self._rollouts.clear()
        for state, count in states.items():
            self._rollouts.labels(state).set(count)
        self._hosts.set(known)
        self._connected.set(connected)
        return generate_latest(self._registry)


def _figures(connection: Connection) -> tuple[outbox.Totals, dict[str, int], tuple[int, int]]:
    known = [host for host in hosts.hosts(connection) if not host.revoked]
    counts = (len(known), sum(host.connected for host in known))
    return outbox.totals(connection), rollouts.counts(connection), counts


class Measured:
    """The outermost layer: ids, figures, and time limits for bodies.

    Args:
        app: What answers.
        metrics: Where requests are counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 0
        request_id = new_id()
        scope["state"]["request_id"] = request_id

        async def measured(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                route = scope.get("path_template") or "none"
                self._metrics.request(route, scope["method"], status, time.perf_counter() - begun)
            await send(message)

        with structlog.contextvars.bound_contextvars(request=request_id):
            await self._app(scope, _patient(scope, receive), measured)


def _patient(scope: Any, receive: Any) -> Any:
    whole = False
    loop = asyncio.get_running_loop()
    upload = scope["path"].startswith("/api/builds/")
    deadline = loop.time() + BODY_WITHIN

    async def patient() -> Any:
        nonlocal whole
        if whole:
            return await receive()
        seconds = CHUNK_WITHIN if upload else min(CHUNK_WITHIN, deadline - loop.time())
        async with asyncio.timeout(max(seconds, 0)):
            message = await receive()
        whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    return patient
