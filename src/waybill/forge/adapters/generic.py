"""Waybill's own: what ``waybill hook post-receive`` sends for a bare repository.

``Waybill-Signature: v1=<hex>`` is the HMAC-SHA256 of ``Waybill-Delivery.Waybill-Timestamp.body``, the timestamp in
seconds since 1970. The body is ``{"v": 1, "repository": NAME, "pusher": LOGIN, "updates": [{"ref": …, "before": …,
"after": …}]}``, one update for each reference that one push moved, object ids as git gives them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar, Literal

import msgspec

from waybill.core.errors import InvalidInputError
from waybill.forge import payload, signatures
from waybill.forge.model import Delivery, Forge, ForgeEvent, UnsignedError

_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


class _Update(msgspec.Struct):
    ref: str
    before: str
    after: str


class _Pushed(msgspec.Struct):
    v: Literal[1]
    repository: str
    updates: list[_Update]
    pusher: str | None = None


class Generic:
    """Any git repository whose hooks one may write."""

    name: ClassVar[str] = "generic"

    def verify(self, headers: Mapping[str, str], body: bytes, secret: str, now: datetime) -> Delivery:
        """Authenticate a request; see ``Forge.verify``."""
        given = signatures.one(headers, "Waybill-Signature")
        identity = signatures.one(headers, "Waybill-Delivery")
        seconds = signatures.one(headers, "Waybill-Timestamp")
        if given is None or identity is None or seconds is None:
            raise UnsignedError(
                "the request is not signed: Waybill-Signature, Waybill-Delivery or Waybill-Timestamp is missing.",
                "Send it with: waybill hook post-receive.",
            )
        if not _ID.fullmatch(identity):  # no full stop, so that the signed text can be taken apart in one way only
            raise InvalidInputError("the header Waybill-Delivery is malformed.")
        content = b"%s.%s.%s" % (identity.encode(), seconds.encode("latin-1", "backslashreplace"), body)
        signatures.check_hex(given, "Waybill-Signature", content, secret, prefix="v1=")
        signatures.check_fresh(seconds, "Waybill-Timestamp", now)
        return Delivery(id=identity, event="push")

    def read(self, event: str, body: bytes) -> Sequence[ForgeEvent]:
        """The events of a request; see ``Forge.read``."""
        told = payload.decode(self.name, event, body, _Pushed)
        where = payload.repository(self.name, told.repository, "$.repository", None, None)
        who = payload.actor(told.pusher)
        return [
            payload.push(
                self.name,
                repository=where,
                ref=update.ref,
                before=update.before,
                after=update.after,
                actor=who,
                where=f"$.updates[{index}]",
            )
            for index, update in enumerate(told.updates)
        ]


FORGE: Forge = Generic()
