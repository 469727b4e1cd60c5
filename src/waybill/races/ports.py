"""What the reports ask of a forge."""

from __future__ import annotations

from typing import ClassVar, Protocol

import msgspec


class Issue(msgspec.Struct, frozen=True, kw_only=True):
    """An issue as it stands.

    Attributes:
        number: As people write it, without ``#``.
        title: One line.
        body: Markdown.
        open: Whether it is.
        closed: When it was closed, RFC 3339; empty while it is open.
        url: Where people look at it.
        duplicate_of: The number of the issue that a person declared to be the same; empty where the forge has no such
            field.
    """

    number: str
    title: str
    body: str
    open: bool
    closed: str = ""
    url: str = ""
    duplicate_of: str = ""


class Comment(msgspec.Struct, frozen=True, kw_only=True):
    """A comment.

    Attributes:
        id: The forge's.
        body: Markdown.
        trusted: Whether somebody wrote it who may change the project's issues, as far as the forge says.
    """

    id: str
    body: str
    trusted: bool = True


class IssueTracker(Protocol):
    """One project's issues. Every call raises ``WaybillError``; after ``UnavailableError`` the effect is unknown."""

    name: ClassVar[str]

    def labelled(self, label: str) -> list[Issue]:
        """All issues with this label, open and closed; new ones may be missing for a while."""
        ...

    def issue(self, number: str) -> Issue | None:
        """One issue, as it stands now."""
        ...

    def create(self, title: str, body: str, labels: list[str]) -> Issue:
        """A new issue; labels that the project lacks are made."""
        ...

    def comments(self, number: str) -> list[Comment]:
        """All comments, oldest first."""
        ...

    def comment(self, number: str, body: str) -> None:
        """Add a comment."""
        ...

    def change_comment(self, number: str, comment: str, body: str) -> None:
        """Replace a comment's text."""
        ...

    def change_body(self, number: str, body: str) -> None:
        """Replace an issue's text."""
        ...

    def set_open(self, number: str, *, wanted: bool) -> None:
        """Open or close an issue; nothing happens when it is so already."""
        ...

    def add_label(self, number: str, label: str) -> None:
        """Add a label, which is made when the project lacks it."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Which project, and who asks.

    Attributes:
        url: Of the forge, as people open it; for github.com ``https://api.github.com``.
        project: Full name with its groups.
        token: Text of the token.
        ca: Path of a PEM file to trust instead of the system's authorities; empty for those.
    """

    url: str
    project: str
    token: str
    ca: str = ""


class Forge(Protocol):
    """What a file in ``races/adapters/`` provides as ``TRACKER``."""

    name: ClassVar[str]

    def __call__(self, place: Place) -> IssueTracker:
        """The issues of a project."""
        ...
