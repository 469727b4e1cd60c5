"""Reported races become issues."""

from __future__ import annotations

from collections.abc import Iterable

from waybill.events.dispatch import on
from waybill.events.model import Action, Event
from waybill.races.actions import FileRaces
from waybill.races.events import RaceDecided, RacesReported


@on(RacesReported)
def report(_event: Event) -> Iterable[Action]:
    """New reports are filed."""
    yield FileRaces()


@on(RaceDecided)
def decide(_event: Event) -> Iterable[Action]:
    """So is what a person decided about."""
    yield FileRaces()
