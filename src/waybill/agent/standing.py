"""Where every service of a host stands, read from files alone, for ``waybill agent status``."""

from __future__ import annotations

from typing import Any

from waybill.agent import rules
from waybill.agent.state import Folder, Home
from waybill.wire.agent import State


def standings(home: Home) -> list[dict[str, Any]]:
    """One row for each service and environment that the host was ever told of."""
    return [standing(folder) for folder in home.services()]


def standing(folder: Folder) -> dict[str, Any]:
    """Where one stands."""
    told, attempt, live = folder.told(), folder.attempt(), folder.live()
    step = rules.next_step(told, attempt, live, held=folder.held, exists=folder.releases.exists())
    state: State = "waiting"
    match step:
        case rules.Rest(at):
            state = at
        case rules.Continue(stage):
            state = stage
        case rules.Undo() if attempt and attempt.verdict:
            state = attempt.verdict
        case _:
            pass
    reason = attempt.reason if attempt and attempt.verdict and state == attempt.verdict else ""
    if told.refusal:
        reason = f"{reason} Refused: {told.refusal.reason}".strip()
    return {
        "key": folder.key,
        "state": state,
        "sequence": told.highest,
        "reason": reason,
        "held": folder.held,
        "live_sequence": live.placed.manifest.sequence if live else 0,
        "live_commit": live.placed.manifest.commit if live else "",
        "live_release": live.placed.release.id if live else "",
        "live_since": live.since if live else "",
        "previous_release": live.previous.release.id if live and live.previous else "",
        "warning": "no health check: a broken version would go live."
        if live and not live.placed.release.health
        else "",
    }
