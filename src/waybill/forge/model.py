"""What a forge tells us, in one vocabulary, and the seam that every forge fills.

A delivery is authenticated on its raw bytes before anything of it is parsed; then the forge's own words become the
events below. An event is a hint: whoever reacts to it reads the branch or the object again and believes only that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar, Literal, Protocol

import msgspec

from waybill.core.errors import UnauthenticatedError


class UnsignedError(UnauthenticatedError):
    """Nothing in the request vouches for it, or only something too weak to count."""


class WrongSignatureError(UnauthenticatedError):
    """A signature or token is there and does not fit the body and the hook's secret."""


class StaleError(UnauthenticatedError):
    """Rightly signed, but at a time too far from now: a replay, or a clock that is wrong."""


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """An authenticated request.

    Attributes:
        id: The sender's own name for it, equal over retries and different for each event; unique for one hook.
        event: The forge's name of the event, such as ``push`` or ``Merge Request Hook``. Most forges do not sign it.
    """

    id: str
    event: str


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """The repository that an event is about.

    Attributes:
        name: Full name with its groups, for example ``team/hello``.
        http_url: Clone address as the payload has it; what is fetched is the address granted on the server, never this.
        ssh_url: The same for SSH.
    """

    name: str
    http_url: str | None = None
    ssh_url: str | None = None


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who caused an event, by the forge's account.

    Attributes:
        name: Login name; empty when the payload names nobody. Never more than a claim.
        id: The forge's number for the account, which outlives renaming.
    """

    name: str = ""
    id: str | None = None


class Push(msgspec.Struct, frozen=True, kw_only=True, tag="push"):
    """A branch or tag moved, appeared or went away.

    Attributes:
        repository: Where.
        ref: Full name, ``refs/heads/main``; always one that ``git check-ref-format`` accepts.
        kind: What the reference is.
        before: Object id before the push; None when the reference is new.
        after: Object id after it; None when the reference was deleted.
        actor: Who pushed.
        forced: Whether history was rewritten; None when the forge does not say.
        paths: Files that the pushed commits touch; None when the payload does not list them all. For people to read:
            after a forced push it lacks what the dropped commits had touched.
    """

    repository: Repository
    ref: str
    kind: Literal["branch", "tag"]
    before: str | None
    after: str | None
    actor: Actor = Actor()
    forced: bool | None = None
    paths: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """The branch or tag without ``refs/heads/`` or ``refs/tags/``."""
        return self.ref.split("/", 2)[2]

    @property
    def created(self) -> bool:
        """Whether the reference is new."""
        return self.before is None

    @property
    def deleted(self) -> bool:
        """Whether the reference is gone."""
        return self.after is None


class Ignored(msgspec.Struct, frozen=True, kw_only=True, tag="ignored"):
    """Understood, and nothing that anybody reacts to.

    Attributes:
        event: The forge's name of it.
        reason: One sentence.
    """

    event: str
    reason: str


ForgeEvent = Push | Ignored


class Forge(Protocol):
    """What a file in ``forge/adapters/`` provides as ``FORGE``."""

    name: ClassVar[str]

    def verify(self, headers: Mapping[str, str], body: bytes, secret: str, now: datetime) -> Delivery:
        """Authenticate a request.

        Args:
            headers: As ``signatures.fold`` makes them: names in lower case, repeated headers recognisable.
            body: The raw bytes, as received.
            secret: Of this hook.
            now: The present moment, for schemes that sign a time.

        Raises:
            UnauthenticatedError: ``UnsignedError``, ``WrongSignatureError`` or ``StaleError``.
            InvalidInputError: A header that is needed is missing, repeated or malformed.
        """
        ...

    def read(self, event: str, body: bytes) -> Sequence[ForgeEvent]:
        """The events of an authenticated request, in order.

        Raises:
            InvalidInputError: The body is no JSON, or a field is missing or malformed; the sentence names it.
        """
        ...
