"""YAML variables files: reads where each value stands, and writes one value.

Reading follows the parser's events and builds no objects from the text, so there is nothing that a tag could
construct and nothing that an alias could multiply; anchors, aliases and tags are refused. A service gets the text that
was written: only integers, decimals and booleans in their one usual form keep a type, everything else unquoted
(``1.10``, ``0777``, ``2026-01-31``, ``yes``) is the string that stands there.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml import events as yaml_events
from ruamel.yaml.error import YAMLError

from waybill.core.errors import InvalidInputError
from waybill.vault.model import Document, Kind, Leaf, Note, Place

_INT: Final = re.compile(r"0|-?[1-9][0-9]{0,17}")
_FLOAT: Final = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]*[1-9]")
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
# What every reader of YAML 1.1 and 1.2 takes for a string, in a block and between brackets alike.
_SAFE: Final = re.compile(r"[A-Za-z_/][A-Za-z0-9_./@%+=~-]*(://[A-Za-z0-9_./@%+=~-]+)?(:[A-Za-z0-9_./@%+=~-]+)*")
_RESERVED: Final = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "null"})
_COMMENT: Final = re.compile(r"(?:(?<=\s)|^)#([^\r\n]*)", re.MULTILINE)
_ESCAPED: Final = re.compile("[\x7f-\xa0\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")
_DEPTH: Final = 20


class _Frame(msgspec.Struct):
    """A map or list that is being read; ``key`` is the open key of a map, or the index of a list's next item."""

    is_map: bool
    place: Place
    key: str | int | None = None
    seen: set[str] = msgspec.field(default_factory=set)


def read(text: str, path: str) -> Document:
    """The values of a YAML text, plain or locked.

    Raises:
        InvalidInputError: It is not YAML, not one map of names to values, repeats a name, or uses anchors,
            aliases, tags, directives or several documents. The sentence never quotes a value.
    """
    return _Reader(text, path).read()


class _Reader:
    def __init__(self, text: str, path: str) -> None:
        self.text = text
        self.path = path
        self.leaves: list[Leaf] = []
        self.metadata: dict[Place, Leaf] = {}
        self.stack: list[_Frame] = []
        self.spans: list[tuple[int, int]] = []
        self.block: tuple[int, int] | None = None
        self.nested = 0
        self.flat = True
        self.documents = 0

    def read(self) -> Document:
        line = 1
        try:
            for event in YAML(typ="safe", pure=True).parse(self.text):
                line = event.start_mark.line + 1
                self._take(event, line)
        except YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            raise self._refusal(
                mark.line + 1 if mark else line,
                "this is not YAML that can be read",
                "One NAME: value a line; a value with : # { } [ ] * & ! | > % @ ` or a quote in it needs quotes.",
            ) from None
        except (ValueError, OverflowError):  # an escape such as \UFFFFFFFF
            raise self._refusal(line, "this holds a character that does not exist") from None
        blocks = (self.block,) if self.block else ()
        return Document(
            path=self.path,
            style="yaml",
            text=self.text,
            leaves=tuple(self.leaves),
            notes=tuple(self._notes()),
            metadata=self.metadata,
            blocks=blocks,
            nested=self.nested,
            flat=self.flat,
        )

    def _take(self, event: Any, line: int) -> None:
        match event:
            case yaml_events.DocumentStartEvent():
                if event.version or event.tags:
                    raise self._refusal(line, "directives are not for variables files", "Remove the % lines.")
                self.documents += 1
                if self.documents > 1:
                    raise self._refusal(line, "a second document begins here", "Keep one document in the file.")
            case yaml_events.DocumentEndEvent() if event.explicit:
                raise self._refusal(line, "the document is ended by ...", "Remove that line.")
            case yaml_events.AliasEvent():
                raise self._refusal(line, "aliases (*name) are refused", "Write the value out, or put it in quotes.")
            case yaml_events.MappingStartEvent() | yaml_events.SequenceStartEvent():
                self._open(event, line)
            case yaml_events.MappingEndEvent() | yaml_events.SequenceEndEvent():
                self.stack.pop()
                self._next()
            case yaml_events.ScalarEvent():
                self._scalar(event, line)
            case _:
                pass

    def _open(self, event: Any, line: int) -> None:
        self._plain_node(event, line)
        is_map = isinstance(event, yaml_events.MappingStartEvent)
        place = self._place(line)
        if not self.stack and not is_map:
            raise self._refusal(line, "this is a list", "One NAME: value a line.")
        if len(self.stack) >= _DEPTH:
            raise self._refusal(line, f"this is nested deeper than {_DEPTH} levels")
        if not self.stack and (event.flow_style or event.start_mark.column):
            self.flat = False
        if self.stack and place[0] != "sops":
            self.nested = self.nested or line
        self.stack.append(_Frame(is_map, place, None if is_map else 0))

    def _scalar(self, event: Any, line: int) -> None:
        self._plain_node(event, line)
        start, end = event.start_mark.index, event.end_mark.index
        end = start + len(self.text[start:end].rstrip())  # a block scalar's span reaches to the next line
        self.spans.append((start, end))
        kind, value = _typed(event.value) if event.style is None else _text(event.value)
        if not self.stack:
            if kind == "null" and start == end:
                return
            raise self._refusal(line, "this is one value, not a map of names", "One NAME: value a line.")
        frame = self.stack[-1]
        if frame.is_map and frame.key is None:
            self._key(frame, kind, event, line)
            return
        place = self._place(line)
        leaf = Leaf(place, kind, value, line, start, end)
        if place[0] == "sops":
            self.metadata[place[1:]] = leaf
        else:
            self.leaves.append(leaf)
        self._next()

    def _key(self, frame: _Frame, kind: Kind, event: Any, line: int) -> None:
        name: str = event.value
        if kind != "str" or not name:
            raise self._refusal(line, "a name must be text", "Put it in quotes, or begin it with a letter.")
        if ":" in name:
            raise self._refusal(
                line, "a name with a colon in it is refused: two such names could stand for one place", "Rename it."
            )
        if name in frame.seen:
            raise self._refusal(line, "a name is given twice in one map", "Keep one of them.")
        frame.seen.add(name)
        frame.key = name
        if not frame.place:
            if self.block and self.block[1] > event.start_mark.index:
                self.block = (self.block[0], self.text.rfind("\n", 0, event.start_mark.index) + 1)
            if name == "sops":
                self.block = (self.text.rfind("\n", 0, event.start_mark.index) + 1, len(self.text))

    def _place(self, line: int) -> Place:
        if not self.stack:
            return ()
        frame = self.stack[-1]
        if frame.key is None:
            raise self._refusal(line, "a map or list cannot be a name")
        return (*frame.place, frame.key)

    def _next(self) -> None:
        """A value is complete: the next scalar of a map is a key again, a list counts on."""
        if self.stack:
            frame = self.stack[-1]
            frame.key = None if frame.is_map else int(frame.key or 0) + 1

    def _plain_node(self, event: Any, line: int) -> None:
        if event.anchor:
            raise self._refusal(line, "anchors (&name) are refused", "Write the value out, or put it in quotes.")
        if event.tag:
            raise self._refusal(line, "tags (!name) are refused", "Put a value that begins with ! in quotes.")

    def _notes(self) -> list[Note]:
        """Comments: each ``#`` at a line's start or after a space that is neither in a value nor in the metadata."""
        covered = sorted([*self.spans, (len(self.text), len(self.text))])
        notes: list[Note] = []
        at = 0
        for start, end in covered:
            notes.extend(
                Note(found[1], found.start(1), found.end(1)) for found in _COMMENT.finditer(self.text, at, start)
            )
            at = max(at, end)
        first, last = self.block or (0, 0)
        return [note for note in notes if not first <= note.start < last]

    def _refusal(self, line: int, what: str, hint: str = "") -> InvalidInputError:
        return InvalidInputError(f"{self.path}, line {line}: {what}.", hint)


def _typed(value: str) -> tuple[Kind, str]:
    """Type and SOPS text of an unquoted scalar."""
    if value in _NULL:
        return "null", ""
    if value in ("true", "false"):
        return "bool", value.title()
    if _INT.fullmatch(value):
        return "int", value
    if _FLOAT.fullmatch(value) and len(value) <= 16:  # 15 digits are kept exactly by a double
        return "float", value
    return "str", value


def _text(value: str) -> tuple[Kind, str]:
    """Type and SOPS text of a quoted scalar."""
    return "str", value


def write(leaf: Leaf, *, literal: bool) -> str:
    """The scalar that reads back as this leaf's type and text.

    Args:
        leaf: Its ``kind`` and ``text`` are written.
        literal: Whether a text of several lines may become a ``|`` block, which needs a line end after the value.
    """
    text = leaf.text
    if leaf.kind == "null":
        return ""
    if leaf.kind in ("int", "float", "bool") and _typed(leaf.shown) == (leaf.kind, text):
        return leaf.shown
    if _SAFE.fullmatch(text) and text.lower() not in _RESERVED:
        return text
    lines = text.split("\n")
    if literal and len(lines) > 1 and _literal(lines):
        body = lines[:-1] if lines[-1] == "" else lines
        return ("|" if lines[-1] == "" else "|-") + "".join(f"\n  {line}" if line else "\n" for line in body)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False))


def _literal(lines: list[str]) -> bool:
    """Whether these lines read back from an indented block exactly: no odd spaces, no characters that need escapes."""
    body = lines[:-1] if lines[-1] == "" else lines
    return (
        bool(body[0].strip())
        and bool(body[-1].strip())
        and not body[0][0].isspace()
        and all(line.isprintable() and (not line or not line.isspace()) for line in body)
    )


def metadata(recipients: list[tuple[str, str]], modified: str, mac: str) -> str:
    """The ``sops`` block of a file that waybill made; ``recipients`` are pairs of recipient and armor."""
    entries = "".join(
        f"        - recipient: {recipient}\n          enc: |\n"
        + "".join(f"            {line}\n" for line in armor.strip().splitlines())
        for recipient, armor in recipients
    )
    return (
        f'sops:\n    age:\n{entries}    lastmodified: "{modified}"\n    mac: {mac}\n'
        "    unencrypted_suffix: _unencrypted\n    version: 3.9.0\n"
    )
