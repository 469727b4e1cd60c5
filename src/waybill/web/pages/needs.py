"""What the pages ask of the server; the context that wiring makes has it all."""

from __future__ import annotations

import asyncio
from typing import Protocol

from waybill.deploy.service import Deployments
from waybill.infra.db import Database
from waybill.infra.keys import Keys


class Needs(Protocol):
    """Collaborators of the pages.

    ``public_url`` is how browsers reach this port; ``stopping`` is set when the server begins to stop.
    """

    @property
    def db(self) -> Database: ...  # noqa: D102 - named above

    @property
    def keys(self) -> Keys: ...  # noqa: D102 - named above

    @property
    def deployments(self) -> Deployments: ...  # noqa: D102 - named above

    @property
    def public_url(self) -> str: ...  # noqa: D102 - named above

    @property
    def stopping(self) -> asyncio.Event: ...  # noqa: D102 - named above
