"""Webhooks: ``POST /hooks/{id}``.

The raw body is read under a size and a time limit, authenticated, and only then parsed. The delivery's id, the events
that the forge's adapter read from it and the work of those who react to them are written in one transaction; the
answer is sent when that is durable. A delivery that is known already is answered and does nothing.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from litestar import Request, Response, Router, post
from litestar.params import FromPath

from waybill.core import clock
from waybill.core.errors import (
    InvalidInputError,
    NotFoundError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    WaybillError,
)
from waybill.core.ids import new_id
from waybill.core.plugins import Plugins
from waybill.deploy.events import PushReceived
from waybill.deploy.store import access, repositories
from waybill.events import outbox
from waybill.forge import signatures
from waybill.forge.model import (
    Delivery,
    Forge,
    ForgeEvent,
    Ignored,
    Push,
    StaleError,
    UnsignedError,
    WrongSignatureError,
)
from waybill.infra.db import Connection, Database
from waybill.infra.keys import Keys
from waybill.web.metrics import Metrics
from waybill.web.problems import refused

BODY_LIMIT = 25 * 1024 * 1024
"""Bytes of a body; GitHub sends no more than that."""
BODY_TIME = 20.0
"""Seconds in which the body must have come; with ``patience.HEAD_TIME`` before it, a request takes 30 at most."""
MEMORY = 256 * 1024 * 1024
"""Bytes of bodies that may be held at the same time, over all requests."""
DRAIN_TIME = 5.0
"""Seconds for which a body that is too large is read and dropped, so that its sender comes to read the refusal."""
LARGE = 256 * 1024
"""Bytes from which a body is hashed and parsed in a thread, so that others need not wait for it."""
KEPT = timedelta(days=30)
"""How long the ids of deliveries are remembered; forges deliver again for three days at most."""
SECRET_LENGTH = 16
"""Characters; a shorter secret could be guessed from a single signed delivery."""

_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NOBODY = "00000000-0000-0000-0000-000000000000"


class _SlowError(WaybillError):
    status = 408


class _MediaTypeError(InvalidInputError):
    status = 415


class _DisconnectedError(WaybillError):
    pass


_REASONS: tuple[tuple[type[WaybillError], str], ...] = (
    (UnsignedError, "unsigned"),
    (WrongSignatureError, "wrong-signature"),
    (StaleError, "stale"),
    (TooLargeError, "too-large"),
    (_SlowError, "too-slow"),
    (_MediaTypeError, "media-type"),
    (_DisconnectedError, "disconnected"),
    (NotFoundError, "unknown-hook"),
    (InvalidInputError, "malformed"),
    (UnavailableError, "unavailable"),
)


class _Hook(msgspec.Struct, frozen=True):
    """A hook with all that is needed to read its deliveries; without a forge, a stand-in for an unknown one."""

    id: str
    repository: str
    forge: Any
    secret: str


class Hooks:
    """The addresses that forges deliver to.

    Args:
        db: The database.
        keys: Where each hook's secret stands, as ``hook-<id>``.
        metrics: Where deliveries are counted.
    """

    def __init__(self, db: Database, keys: Keys, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()
        self._db = db
        self._keys = keys
        self._forges: Plugins[Forge] = Plugins("waybill.forge.adapters", "FORGE")
        self._held = 0
        self._decoy = secrets.token_hex(32)
        self._known: dict[str, _Hook] = {}

    def router(self) -> Router:
        """``POST /hooks/{hook_id}``."""

        @post("/{hook_id:str}", status_code=202, request_max_body_size=None, raises=[])
        async def deliver(request: Request[Any, Any, Any], hook_id: FromPath[str]) -> Response[Any]:
            """Take a delivery of a forge; 202 when it is new, 200 when it is known or nothing reacts to it."""
            try:
                return await self._deliver(request, hook_id)
            except WaybillError as error:
                reason = next((name for kind, name in _REASONS if isinstance(error, kind)), "failed")
                self._metrics.hook_refused(reason)
                answer = refused(request, error)
                if isinstance(error, TooLargeError | _SlowError | _MediaTypeError | UnavailableError):
                    answer.headers["connection"] = "close"  # its body may not have been read to the end
                return answer

        return Router(path="/hooks", route_handlers=[deliver], tags=["hooks"])

    async def add(self, forge: str, repository: str, actor: str, secret: str = "") -> tuple[str, str]:
        """Make an address for the deliveries of a repository.

        Args:
            forge: Name of an adapter.
            repository: By which the server knows it.
            actor: Who asks.
            secret: The one entered in the forge; empty makes a fresh one.

        Returns:
            Its id, the last part of the address, and its secret.

        Raises:
            NotFoundError: No such forge or repository.
            InvalidInputError: The secret is too short, or no signing token although it begins like one.
        """
        adapter = self._forges[forge]
        secret = secret or secrets.token_hex(32)
        if secret.startswith("whsec_"):
            signatures.standard_key(secret)
        if len(secret) < SECRET_LENGTH or not secret.isprintable():
            raise InvalidInputError(
                f"a hook's secret has at least {SECRET_LENGTH} printable characters.",
                "Leave it out to get a fresh one.",
            )
        identity = new_id()
        self._keys.put(f"hook-{identity}", secret.encode())

        def store(connection: Connection) -> None:
            repositories.repository(connection, repository)
            access.add_hook(connection, identity, adapter.name, repository, actor)

        try:
            await self._db.write(store)
        except WaybillError:
            self._keys.remove(f"hook-{identity}")
            raise
        return identity, secret

    async def remove(self, hook_id: str) -> None:
        """Take nothing more at this address."""
        await self._db.write(lambda connection: access.remove_hook(connection, hook_id))
        self._known.pop(hook_id, None)
        self._keys.remove(f"hook-{hook_id}")

    async def forget(self) -> None:
        """Drop the ids of deliveries that are too old to come again."""
        before = clock.stamp(clock.now() - KEPT)
        await self._db.write(lambda connection: access.forget_deliveries(connection, before))

    async def _deliver(self, request: Request[Any, Any, Any], hook_id: str) -> Response[Any]:
        body, known = bytearray(), None
        try:
            await self._read(request, body)
            known = self._known.get(hook_id)
            hook = known or await self._find(hook_id if _ID.fullmatch(hook_id) else _NOBODY)
            work = (hook, signatures.fold(request.scope["headers"]), bytes(body))
            delivery, events = _open(*work) if len(body) < LARGE else await asyncio.to_thread(_open, *work)
        except UnauthenticatedError:
            # Looked up now if it was not before: it may be gone, and an unknown one is looked up too.
            if known is not None and (await self._find(hook_id)).forge is None:
                raise _unknown() from None
            raise
        finally:
            self._held -= len(body)
        return await self._store(hook, delivery, events)

    async def _find(self, hook_id: str) -> _Hook:
        """The hook of this id; for an unknown one a stand-in that nobody has the secret of."""
        row = await self._db.read(lambda connection: access.hook(connection, hook_id))
        secret = self._keys.get(f"hook-{hook_id}")
        if row is None:
            self._known.pop(hook_id, None)
            return _Hook(id="", repository="", forge=None, secret=self._decoy)
        if secret is None:
            raise WaybillError("the secret of this hook is gone from the server's data folder.", "Make the hook again.")
        found = _Hook(id=hook_id, repository=row[1], forge=self._forges[row[0]], secret=secret.decode())
        self._known[hook_id] = found
        return found

    async def _store(self, hook: _Hook, delivery: Delivery, events: Sequence[ForgeEvent]) -> Response[Any]:
        told = {"delivery": delivery.id}
        ignored = [event for event in events if isinstance(event, Ignored)]
        pushes = {event.ref: event for event in events if isinstance(event, Push) and event.kind == "branch"}
        if not pushes:
            reason = ignored[0].reason if ignored else "nothing reacts to tags."
            return Response({**told, "ignored": reason}, status_code=200)
        found = [
            PushReceived(repository=hook.repository, branch=push.name, claimed=push.after or "", pusher=push.actor.name)
            for push in pushes.values()
        ]

        def store(connection: Connection) -> bool:
            if access.hook(connection, hook.id) is None:  # removed since we looked, perhaps on another server
                self._known.pop(hook.id, None)
                raise _unknown()
            if not access.first_delivery(connection, hook.id, delivery.id):
                return False
            for event in found:
                outbox.record(connection, event, f"hook:{hook.id}")
            return True

        new = await self._db.write(store)
        if new:
            self._metrics.hook_accepted(hook.forge.name)
        return Response(told, status_code=202 if new else 200)

    async def _read(self, request: Request[Any, Any, Any], body: bytearray) -> None:
        """Read the raw body, which counts as held while it grows."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" or request.headers.get("content-encoding", "identity") != "identity":
            raise _MediaTypeError(
                "a delivery is plain application/json.", "Choose application/json as the content type in the forge."
            )
        announced = request.headers.get("content-length", "")
        size, more = int(announced[:20]) if announced.isdecimal() else 0, True
        try:
            async with asyncio.timeout(BODY_TIME):
                while more and size <= BODY_LIMIT:
                    more = await self._part(request, body)
                    size = max(size, len(body))
        except TimeoutError:
            raise _SlowError(f"the body did not come within {BODY_TIME:.0f} seconds.") from None
        if size > BODY_LIMIT:
            if more and not request.headers.get("expect"):  # otherwise the sender waits for our word before it sends
                await _drain(request)
            raise TooLargeError(f"a delivery has at most {BODY_LIMIT} bytes.")

    async def _part(self, request: Request[Any, Any, Any], body: bytearray) -> bool:
        """Add what has come to the body; False when that was the last of it."""
        message: Any = await request.receive()
        if message["type"] == "http.disconnect":
            raise _DisconnectedError("the sender went away.")
        part = message["body"]
        if self._held + len(part) > MEMORY:
            raise UnavailableError("too many large deliveries at once.", "Send it again in a while.")
        body += part
        self._held += len(part)
        return bool(message.get("more_body", False))


def _open(hook: _Hook, headers: dict[str, str], body: bytes) -> tuple[Delivery, Sequence[ForgeEvent]]:
    """Authenticate, then parse; what is sent to an unknown hook takes as long as what is wrongly signed."""
    if hook.forge is None:
        with suppress(WrongSignatureError):
            signatures.check_hex("", "", body, hook.secret)
        raise _unknown()
    forge: Forge = hook.forge
    delivery = forge.verify(headers, body, hook.secret, datetime.now(UTC))
    return delivery, forge.read(delivery.event, body)


def _unknown() -> NotFoundError:
    return NotFoundError("there is no such hook.", "Compare the address with the one that the server printed.")


async def _drain(request: Request[Any, Any, Any]) -> None:
    try:
        async with asyncio.timeout(DRAIN_TIME):
            while (message := await request.receive())["type"] == "http.request" and message.get("more_body", False):
                pass
    except TimeoutError:
        return
