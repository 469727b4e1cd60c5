"""Gitea: bare hexadecimal HMAC-SHA256 of the body in ``X-Gitea-Signature``.

Gitea sends copies of its headers under GitHub's and Gogs's names; its own are the ones that count.
https://docs.gitea.com/usage/webhooks
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar

from waybill.forge import hub, signatures
from waybill.forge.model import Delivery, Forge, ForgeEvent, UnsignedError


class Gitea:
    """Gitea, and what its heirs have in common with it."""

    name: ClassVar[str] = "gitea"
    prefixes: ClassVar[tuple[str, ...]] = ("X-Gitea-",)
    """Of its header names; the first one present is the one that counts."""

    def verify(self, headers: Mapping[str, str], body: bytes, secret: str, now: datetime) -> Delivery:  # noqa: ARG002
        """Authenticate a request; see ``Forge.verify``."""
        self._authenticate(headers, body, secret)
        ids = (signatures.delivery_of(headers, f"{prefix}Delivery") for prefix in self.prefixes)
        named = [prefix for prefix in self.prefixes if f"{prefix}Event".lower() in headers] or self.prefixes
        return Delivery(
            id=next((found for found in ids if found is not None), None) or signatures.digest_id(body),
            event=signatures.event_of(headers, f"{named[0]}Event"),
        )

    def read(self, event: str, body: bytes) -> Sequence[ForgeEvent]:
        """The events of a request; see ``Forge.read``."""
        return hub.read(self.name, event, body, limit=None)

    def _authenticate(self, headers: Mapping[str, str], body: bytes, secret: str) -> None:
        for name in (f"{prefix}Signature" for prefix in self.prefixes):
            given = signatures.one(headers, name)
            if given is not None:
                return signatures.check_hex(given, name, body, secret)
        given = signatures.one(headers, "X-Hub-Signature-256")
        if given is not None:
            return signatures.check_hex(given, "X-Hub-Signature-256", body, secret, prefix="sha256=")
        weak = signatures.one(headers, "X-Hub-Signature") is not None
        raise UnsignedError(
            "the request is signed with SHA-1 only, which does not count."
            if weak
            else f"the request is not signed: {self.prefixes[0]}Signature is missing.",
            "Set the hook's secret in the forge.",
        )


FORGE: Forge = Gitea()
