"""Forgejo: as Gitea, under its own header names first.

https://forgejo.org/docs/latest/user/webhooks/
"""

from __future__ import annotations

from typing import ClassVar

from waybill.forge.adapters.gitea import Gitea
from waybill.forge.model import Forge


class Forgejo(Gitea):
    """Forgejo, Codeberg included."""

    name: ClassVar[str] = "forgejo"
    prefixes: ClassVar[tuple[str, ...]] = ("X-Forgejo-", "X-Gitea-")


FORGE: Forge = Forgejo()
