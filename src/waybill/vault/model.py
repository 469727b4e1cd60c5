"""What a variables file is made of, whatever its syntax: leaves and comments, each with the span it has in the text.

Files are never written anew from a tree. A value is exchanged in its span and everything else stays as the person
wrote it, so comments, order and blank lines survive, and an edit is as small in the diff as it was in the editor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

Place = tuple[str | int, ...]
"""Where a leaf stands: keys and list indices from the root."""

Kind = Literal["str", "int", "float", "bool", "null", "bytes", "time"]
Style = Literal["yaml", "dotenv", "json"]

LIMIT = 512 * 1024
"""Bytes that a variables file may have, plain or locked."""


class Leaf(msgspec.Struct, frozen=True):
    """One scalar value.

    Attributes:
        place: Keys and list indices from the root.
        kind: Its type; ``time`` and ``bytes`` only come out of files that others locked.
        text: The value as SOPS hashes and encrypts it (booleans are ``True`` and ``False`` there), or the
            ``ENC[…]`` form in a locked file.
        line: Where it begins, counted from 1.
        start: Offset of its span in the text, quotes included.
        end: Offset after its span.
    """

    place: Place
    kind: Kind
    text: str
    line: int
    start: int = 0
    end: int = 0

    @property
    def name(self) -> str:
        """How a person calls it: ``DB_URL``, or ``db.hosts.0`` when it is nested."""
        return ".".join(str(part) for part in self.place)

    @property
    def path(self) -> str:
        """What SOPS binds the ciphertext to: the keys, each followed by a colon; list indices are left out."""
        return "".join(f"{part}:" for part in self.place if isinstance(part, str)) or ":"

    @property
    def shown(self) -> str:
        """The value as a service gets it: text as written, booleans in lower case, nothing for null."""
        return self.text.lower() if self.kind == "bool" else self.text

    @property
    def in_plain(self) -> bool:
        """Whether SOPS leaves it readable: a key on its way ends with ``_unencrypted``, or there is nothing to hide."""
        marked = any(isinstance(part, str) and part.endswith("_unencrypted") for part in self.place)
        return marked or self.kind == "null" or not self.text


class Note(msgspec.Struct, frozen=True):
    """One comment: what follows the ``#`` (``text``), which stands right before offset ``start``."""

    text: str
    start: int
    end: int


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A variables file as it was read.

    Attributes:
        path: Its name in sentences.
        style: Its syntax.
        text: All of it.
        leaves: In the order of the file, without those of the metadata.
        notes: Comments outside of the metadata.
        metadata: The leaves of the ``sops`` block by place (without the leading ``sops``); empty in a plain file.
        blocks: Spans of whole lines that hold the metadata.
        nested: Line of the first map or list that is a value, 0 when every value is a scalar.
        flat: Whether a value can be exchanged in its span and lines can be added (not in JSON or ``{…}``).
    """

    path: str
    style: Style
    text: str
    leaves: tuple[Leaf, ...]
    notes: tuple[Note, ...] = ()
    metadata: Mapping[Place, Leaf] = {}
    blocks: tuple[tuple[int, int], ...] = ()
    nested: int = 0
    flat: bool = True

    def meta(self, *place: str | int) -> str:
        """The text of a metadata field, empty when it is absent."""
        leaf = self.metadata.get(place)
        return leaf.text if leaf else ""


def exchange(text: str, spans: list[tuple[int, int, str]]) -> str:
    """The text with each span ``(start, end, new)`` replaced; spans do not overlap."""
    parts, at = [], 0
    for start, end, new in sorted(spans):
        parts += [text[at:start], new]
        at = end
    return "".join([*parts, text[at:]])
