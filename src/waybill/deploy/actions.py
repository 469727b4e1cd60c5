"""What reactions may ask of deploying, in the imperative."""

from __future__ import annotations

from waybill.events.model import Action


class SyncRepository(Action, frozen=True, kw_only=True):
    """Fetch a repository and note which branches moved."""

    repository: str


class StartRollouts(Action, frozen=True, kw_only=True):
    """Start the rollouts that the event's branch asks for and may have."""
