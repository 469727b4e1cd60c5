"""``/api/enrolments`` makes enrolment tokens, ``/api/enrol`` is where a host uses one.

The token's secret never travels: the host proves that it holds it with an HMAC over all that it asks for.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from typing import Any

import msgspec
from litestar import Request, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from waybill.core.clock import later
from waybill.core.errors import ForbiddenError, InvalidInputError, UnauthenticatedError
from waybill.core.ids import new_id
from waybill.deploy import access
from waybill.deploy.events import HostEnrolled
from waybill.deploy.model import Host
from waybill.deploy.store import hosts as store
from waybill.events import outbox
from waybill.infra.db import Connection
from waybill.vault.identity import fingerprint
from waybill.web.api.common import HOST, Ours, Who, changed, labelled, named, words
from waybill.web.auth import Attempts
from waybill.web.context import Context
from waybill.wire.agent import Enrolled, Enrolment
from waybill.wire.api import EnrolmentBody, EnrolmentMade, EnrolmentWanted

PREFIX = "wbe1."
RECIPIENT = r"age1[0-9a-z]{50,100}"
CSR_LIMIT = 16 * 1024


@post("/enrolments")
async def create_enrolment(context: Ours, token: Who, data: JSONBody[EnrolmentWanted]) -> EnrolmentMade:
    """An enrolment token; its text is in this answer and nowhere else."""
    access.require(token, "administer")
    labelled(data.labels)
    if not 1 <= data.uses <= 10_000 or not 60 <= data.seconds <= 30 * 86400:
        raise InvalidInputError("an enrolment token has 1 to 10000 uses and lasts 1 minute to 30 days.")
    identity, secret, expires = new_id(), secrets.token_urlsafe(32), later(data.seconds)

    def keep(connection: Connection) -> None:
        row: dict[str, object] = {
            "id": identity,
            "key": hashlib.sha256(secret.encode()).hexdigest(),
            "labels": msgspec.json.encode(data.labels).decode(),
            "uses": data.uses,
            "expires": expires,
            "actor": token.actor,
        }
        store.add_enrolment(connection, row)
        changed(connection, "enrolment", identity, f"created for {data.uses} hosts with {words(data.labels)}", token)

    await context.db.write(keep)
    body = EnrolmentBody(url=context.public_url, id=identity, secret=secret, ca=context.authority.fingerprint)
    text = PREFIX + base64.urlsafe_b64encode(msgspec.json.encode(body)).decode().rstrip("=")
    return EnrolmentMade(token=text, id=identity, expires=expires, uses=data.uses, labels=data.labels)


@post("/enrol", status_code=201)
async def enrol(
    request: Request[Any, Any, Any], context: Ours, attempts: NamedDependency[Attempts], data: JSONBody[Enrolment]
) -> Enrolled:
    """A host gets its certificate: it proves that it holds an enrolment token, whose labels it then carries."""
    address = request.client.host if request.client else "?"
    attempts.check(address, data.token)
    try:
        labels = await _proved(context, data)
    except (ForbiddenError, UnauthenticatedError):
        attempts.failed(address)
        raise
    named("host", data.name, HOST)
    if not re.fullmatch(RECIPIENT, data.recipient):
        raise InvalidInputError("the recipient is no age recipient.", "It begins with age1.")
    if len(data.csr) > CSR_LIMIT:
        raise InvalidInputError("the certificate request is too large.")
    certificate, serial = context.authority.sign_host(data.name, data.csr)
    host = Host(
        name=data.name,
        labels=labels,
        recipient=data.recipient,
        fingerprint=fingerprint(data.recipient),
        arch=data.facts.arch[:32] if data.facts else "",
        facts=msgspec.json.encode(data.facts).decode() if data.facts else "",
    )

    def keep(connection: Connection) -> None:
        store.add_host(connection, data.token, host, serial)
        body = HostEnrolled(host=host.name, labels=labels, fingerprint=host.fingerprint)
        outbox.record(connection, body, f"enrolment:{data.token}")

    await context.db.write(keep)
    return Enrolled(
        host=host.name,
        certificate=certificate,
        ca=context.authority.pem,
        agents_url=context.agents_url,
        labels=labels,
    )


async def _proved(context: Context, data: Enrolment) -> dict[str, str]:
    """The labels of the token, if the proof fits; takes as long when there is no such token."""
    refusal: ForbiddenError | None = None
    key, labels = "00" * 32, dict[str, str]()
    try:
        key, labels = await context.db.read(lambda connection: store.enrolment_key(connection, data.token[:36]))
    except ForbiddenError as error:
        refusal = error
    told = f"{data.token}\0{data.name}\0{data.csr}\0{data.recipient}".encode()
    proof = hmac.new(bytes.fromhex(key), told, hashlib.sha256).hexdigest()
    right = hmac.compare_digest(proof.encode(), data.proof.encode())
    if refusal is not None:
        raise refusal
    if not right:
        raise UnauthenticatedError(
            "the proof does not fit this enrolment token.", "Copy the whole token that waybill enroll printed."
        )
    return labels


HANDLERS = [create_enrolment]
