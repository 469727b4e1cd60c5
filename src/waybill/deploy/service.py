"""Use cases of deploying; see the methods."""

from __future__ import annotations

from waybill.deploy.model import Rollout
from waybill.infra.db import Database


class Deployments:
    """What people and events ask of deploying.

    Args:
        db: The database.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    async def deploy(self, service: str, environment: str, ref: str, actor: str) -> Rollout:
        """Deploy a branch head or a commit that the mirror holds, within the grants."""
        raise NotImplementedError

    async def rollback(self, service: str, environment: str, to: str, actor: str) -> Rollout:
        """Go back to a known-good rollout (its id, or empty for the one before the present) with its own variables."""
        raise NotImplementedError

    async def cancel(self, rollout: str, actor: str, reason: str) -> Rollout:
        """Stop a rollout that has not ended, on the hosts too; switched hosts go back to what was good."""
        raise NotImplementedError
