"""What happened, and what is to be done about it.

An event is a frozen struct named in the past tense, declared in a domain's ``events.py``; its class name is its kind.
An action is a frozen struct named in the imperative; what performs it is registered once, in ``server/wiring.py``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from waybill.core.errors import ConflictError


class EventBody(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all events; every subclass is found by its name.

    ``subject()`` names what it is about (``service/environment``, a host, a repository) for people who look.
    """

    kinds: ClassVar[dict[str, type[EventBody]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__name__ in EventBody.kinds and EventBody.kinds[cls.__name__].__module__ != cls.__module__:
            raise TypeError(f"two events are called {cls.__name__}")
        EventBody.kinds[cls.__name__] = cls

    def subject(self) -> str:
        """What the event is about."""
        return ""

    def sentence(self) -> str:
        """The event in words, for the timeline."""
        return type(self).__name__


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An event as recorded.

    Attributes:
        id: UUIDv7.
        seq: Position in this database's order of recording.
        at: RFC 3339 UTC.
        actor: Who caused it: ``token:<id>``, ``hook:<id>``, ``host:<name>``, ``waybill``.
        body: What happened.
    """

    id: str
    seq: int
    at: str
    actor: str
    body: EventBody

    @property
    def kind(self) -> str:
        """The name of the body's class."""
        return type(self.body).__name__


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all actions."""


class Again(msgspec.Struct, frozen=True):
    """What a handler returns when it wants to be called again.

    Attributes:
        after: Seconds from now; an earlier wake-up comes first.
    """

    after: float


class LeaseLostError(ConflictError):
    """The lease ran out, or another server took the work over; nothing more may be done in its name."""

    def __init__(self) -> None:
        super().__init__("this work is no longer ours: its lease ran out.")
