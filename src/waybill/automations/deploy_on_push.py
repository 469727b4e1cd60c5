"""A push is fetched, and what its branch's head asks for and may have is deployed."""

from __future__ import annotations

from collections.abc import Iterable

from waybill.deploy.actions import StartRollouts, SyncRepository
from waybill.deploy.events import BranchMoved, PushReceived
from waybill.events.dispatch import on
from waybill.events.model import Action, Event


@on(PushReceived)
def fetch(event: Event) -> Iterable[Action]:
    """A push is a hint: look at the repository itself."""
    yield SyncRepository(repository=event.body.repository)  # type: ignore[attr-defined]


@on(BranchMoved)
def deploy(_event: Event) -> Iterable[Action]:
    """A branch that moved may deploy environments."""
    yield StartRollouts()
