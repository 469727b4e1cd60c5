"""What reactions may ask for."""

from __future__ import annotations

from waybill.events.model import Action


class FileRaces(Action, frozen=True, kw_only=True):
    """Bring the issues to what the reports say."""
