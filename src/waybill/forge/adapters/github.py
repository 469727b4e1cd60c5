"""GitHub: HMAC-SHA256 of the body in ``X-Hub-Signature-256``.

No time is signed and neither are the event and delivery headers, so a captured delivery can be sent again: known
deliveries are passed over, and a push is only a hint.
https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar

from waybill.forge import hub, signatures
from waybill.forge.model import Delivery, Forge, ForgeEvent, UnsignedError


class GitHub:
    """GitHub.com and GitHub Enterprise Server."""

    name: ClassVar[str] = "github"

    def verify(self, headers: Mapping[str, str], body: bytes, secret: str, now: datetime) -> Delivery:  # noqa: ARG002
        """Authenticate a request; see ``Forge.verify``."""
        given = signatures.one(headers, "X-Hub-Signature-256")
        if given is None:
            weak = signatures.one(headers, "X-Hub-Signature") is not None
            raise UnsignedError(
                "the request is signed with SHA-1 only, which does not count."
                if weak
                else "the request is not signed: X-Hub-Signature-256 is missing.",
                "Set the hook's secret in the forge.",
            )
        signatures.check_hex(given, "X-Hub-Signature-256", body, secret, prefix="sha256=")
        return Delivery(
            id=signatures.delivery_of(headers, "X-GitHub-Delivery") or signatures.digest_id(body),
            event=signatures.event_of(headers, "X-GitHub-Event"),
        )

    def read(self, event: str, body: bytes) -> Sequence[ForgeEvent]:
        """The events of a request; see ``Forge.read``."""
        return hub.read(self.name, event, body, limit=2048)


FORGE: Forge = GitHub()
