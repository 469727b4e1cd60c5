"""What several parts of the API share: the record of who changed what, and the form of names."""

from __future__ import annotations

import re

from litestar.di import NamedDependency

from waybill.core.errors import InvalidInputError
from waybill.deploy.access import Token
from waybill.deploy.events import Changed
from waybill.events import outbox
from waybill.infra.db import Connection
from waybill.web.context import Context

Ours = NamedDependency[Context]
"""The collaborators, handed to every handler."""
Who = NamedDependency[Token]
"""The token of who asks."""
NAME = r"[a-z0-9][a-z0-9._-]{0,62}"
HOST = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
LABEL = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}"
REPOSITORY = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,198}"


def changed(connection: Connection, what: str, name: str, change: str, token: Token) -> None:
    """Record that somebody changed something."""
    outbox.record(connection, Changed(what=what, name=name, change=change), token.actor)


def named(kind: str, text: str, pattern: str) -> str:
    """The text, if it is a name of its kind.

    Raises:
        InvalidInputError: It is none.
    """
    if not re.fullmatch(pattern, text) or ".." in text:
        raise InvalidInputError(
            f"{text[:80]!r} is no name of a {kind}.", "Letters, digits, dots and dashes, beginning with a letter."
        )
    return text


def labelled(labels: dict[str, str]) -> dict[str, str]:
    """The labels, if names and values are sound.

    Raises:
        InvalidInputError: There are over 32, or one is malformed.
    """
    if len(labels) > 32:
        raise InvalidInputError(f"{len(labels)} labels are too many; 32 are allowed.")
    for name, value in labels.items():
        named("label", name, LABEL)
        named("label's value", value, LABEL)
    return labels


def words(labels: dict[str, str]) -> str:
    """Labels for a sentence."""
    return " ".join(f"{name}={value}" for name, value in sorted(labels.items())) or "no labels"
