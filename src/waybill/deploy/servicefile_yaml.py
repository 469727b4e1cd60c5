"""YAML with positions, and only the plain part of it.

A service file is read by people on three machines: what looks harmless must be harmless. So anchors, aliases, tags,
directives, merge keys and second documents are refused, and size, depth and number of values have limits. ruamel.yaml
gives the events; the tree of ``Node`` that is made from them remembers where each value stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from waybill.core.errors import InvalidInputError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 12
MAX_NODES = 10_000
SHOWN = 10

Type = Literal["text", "number", "flag", "nothing", "list", "mapping"]

# The core schema of YAML 1.2 (section 10.3.2): yes, no, on and off are texts.
_NOTHING = re.compile(r"|~|null|Null|NULL")
_FLAG = re.compile(r"true|True|TRUE|false|False|FALSE")
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_NUMBER = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+|0x[0-9a-fA-F]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,60}")


class Node(msgspec.Struct, frozen=True):
    """One value of the file.

    Attributes:
        type: What YAML 1.2 takes it for.
        line: Where it begins, from 1.
        column: Where it begins, from 1, in characters.
        where: Dotted keys from the top, such as ``environments.production.run``; empty at the top.
        text: A scalar as it is written, without its quotes.
        items: Of a list.
        entries: Key and value, of a mapping.
    """

    type: Type
    line: int
    column: int
    where: str = ""
    text: str = ""
    items: tuple[Node, ...] = ()
    entries: tuple[tuple[Node, Node], ...] = ()

    def get(self, key: str) -> Node | None:
        """The value of a key, None when the mapping has no such key."""
        return next((value for name, value in self.entries if name.text == key), None)

    def plain(self) -> Any:
        """The value as Python has it; an integer of 10^18 or more becomes a float."""
        match self.type:
            case "nothing":
                return None
            case "flag":
                return self.text.lower() == "true"
            case "number":
                return _number(self.text)
            case "list":
                return [item.plain() for item in self.items]
            case "mapping":
                return {key.text: value.plain() for key, value in self.entries}
        return self.text

    def __str__(self) -> str:
        match self.type:
            case "nothing":
                return "empty"
            case "list" | "mapping":
                return f"a {self.type}"
            case "flag" | "number":
                return shown(self.text)
        return f"the text {shown(self.text)}"


class Fault(msgspec.Struct, frozen=True):
    """One thing that is wrong, and where: ``path:line:column: sentence``."""

    path: str
    line: int
    column: int
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.sentence}"


class InvalidServiceFileError(InvalidInputError):
    """A service file that is refused, with all that is wrong in it.

    Attributes:
        faults: In the order of the file; the reason shows the first ten.
    """

    def __init__(self, faults: tuple[Fault, ...], hint: str = "") -> None:
        more = len(faults) - SHOWN
        lines = [str(fault) for fault in faults[:SHOWN]] + ([f"and {more} more."] if more > 0 else [])
        super().__init__("\n".join(lines), hint)
        self.faults = faults


class Faults:
    """Collects what is wrong in one file, so that a person sees all of it at once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._found: list[Fault] = []

    def add(self, node: Node, sentence: str) -> None:
        """Note a fault at the place of a node."""
        self.at(node.line, node.column, sentence)

    def at(self, line: int, column: int, sentence: str) -> None:
        """Note a fault at a place."""
        self._found.append(Fault(self._path, line, column, sentence))

    def __len__(self) -> int:
        return len(self._found)

    def raise_if_any(self) -> None:
        """Refuse the file when anything was noted.

        Raises:
            InvalidServiceFileError: Something was.
        """
        if self._found:
            found = sorted(self._found, key=lambda fault: (fault.line, fault.column))
            raise InvalidServiceFileError(tuple(found), "docs/guides/service-file.md explains every key.")


def shown(text: str) -> str:
    """A piece of the file as an error shows it: quoted, control characters escaped, at most 60 characters."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def load(text: bytes | str, faults: Faults) -> Node | None:
    """The tree of the one document in a text; None when something that stops the reading was noted.

    Raises:
        InvalidServiceFileError: Never by itself; faults of the text are noted in ``faults``.
    """
    decoded = _decode(text, faults)
    if decoded is None:
        return None
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.reader import ReaderError

    before = len(faults)
    try:
        # "safe" and pure: the scanner that keeps no comments; events only, nothing is ever constructed.
        root = _Builder(YAML(typ="safe", pure=True).parse(decoded), faults).document()
    except _StopError:
        return None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        faults.at(line, column, f"this is no YAML: {error.problem or error.context}.")
        return None
    except ReaderError as error:
        head = decoded[: error.position] if isinstance(error.position, int) else ""
        line, column = head.count("\n") + 1, len(head) - head.rfind("\n")
        faults.at(line, column, f"the character U+{ord(decoded[len(head)]):04X} is not allowed in YAML.")
        return None
    except (YAMLError, ValueError, OverflowError) as error:  # an escape beyond Unicode ends in chr()
        faults.at(1, 1, f"this is no YAML: {error}.")
        return None
    return root if len(faults) == before else None


def _decode(text: bytes | str, faults: Faults) -> str | None:
    size = len(text) if isinstance(text, bytes) else len(text.encode(errors="surrogatepass"))
    if size > MAX_BYTES:
        faults.at(1, 1, f"a service file has at most {MAX_BYTES // 1024} KiB, this one has {size // 1024 + 1}.")
        return None
    if isinstance(text, str):
        return text.removeprefix("\ufeff")
    try:
        return text.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        head = text[: error.start].decode(errors="replace")
        line, column = head.count("\n") + 1, len(head) - head.rfind("\n")
        faults.at(line, column, f"the file is no UTF-8 at byte {error.start}.")
        return None


class _StopError(Exception):
    """What follows makes no sense any more."""


class _Builder:
    """Turns events into nodes; everything that a service file may not use is noted on the way."""

    def __init__(self, events: Iterator[Any], faults: Faults) -> None:
        self._events = events
        self._faults = faults
        self._nodes = 0

    def document(self) -> Node | None:
        root: Node | None = None
        documents = 0
        for event in self._events:
            match type(event).__name__:
                case "DocumentStartEvent":
                    documents += 1
                    if documents > 1:
                        self._stop(event, "a service file is one document; take what follows '---' away.")
                    if event.version or event.tags:
                        self._fault(event, "directives such as %YAML are refused; take the line away.")
                case "StreamStartEvent" | "StreamEndEvent" | "DocumentEndEvent":
                    pass
                case _:
                    root = self._node(event, "", 1)
        return root

    def _node(self, event: Any, where: str, depth: int) -> Node:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._stop(event, f"a service file has at most {MAX_NODES} values.")
        if depth > MAX_DEPTH:
            self._stop(event, f"values are nested more than {MAX_DEPTH} deep here.")
        kind = type(event).__name__
        if kind == "AliasEvent":
            self._fault(event, f"the alias *{event.anchor} is refused; write the value out.")
            return Node("nothing", *_place(event), where)
        if event.anchor:
            self._fault(event, f"the anchor &{event.anchor} is refused; write the value out where it is needed.")
        if event.tag is not None and not (kind == "ScalarEvent" and event.tag == "!"):
            self._fault(event, f"the tag {event.tag} is refused; take it away.")
        if kind == "SequenceStartEvent":
            return self._list(event, where, depth)
        if kind == "MappingStartEvent":
            return self._mapping(event, where, depth)
        return Node(_scalar_type(event), *_place(event), where, event.value)

    def _list(self, start: Any, where: str, depth: int) -> Node:
        items: list[Node] = []
        for event in self._events:
            if type(event).__name__ == "SequenceEndEvent":
                break
            items.append(self._node(event, f"{where}[{len(items)}]", depth + 1))
        return Node("list", *_place(start), where, items=tuple(items))

    def _mapping(self, start: Any, where: str, depth: int) -> Node:
        entries: dict[str, tuple[Node, Node]] = {}
        for event in self._events:
            if type(event).__name__ == "MappingEndEvent":
                break
            key = self._node(event, where, depth + 1)
            if key.type in ("list", "mapping", "nothing"):
                self._fault(event, f"a key is a word; here it is {key}.")
            elif key.text == "<<":
                self._fault(event, "the merge key << is refused; write the keys out.")
            elif key.text in entries:
                first = entries[key.text][0]
                self._fault(event, f"the key {shown(key.text)} stands here twice, first in line {first.line}.")
            word = key.text if _WORD.fullmatch(key.text) else shown(key.text)
            value = self._node(next(self._events), f"{where}.{word}" if where else word, depth + 1)
            if value.type == "nothing" and not value.text:  # it stands nowhere; its key does
                value = msgspec.structs.replace(value, line=key.line, column=key.column)
            entries.setdefault(key.text, (key, value))
        return Node("mapping", *_place(start), where, entries=tuple(entries.values()))

    def _fault(self, event: Any, sentence: str) -> None:
        self._faults.at(*_place(event), sentence)

    def _stop(self, event: Any, sentence: str) -> None:
        self._fault(event, sentence)
        raise _StopError


def _place(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _scalar_type(event: Any) -> Type:
    text = event.value
    if not event.implicit[0]:  # quoted, or a block scalar
        return "text"
    if _NOTHING.fullmatch(text):
        return "nothing"
    if _FLAG.fullmatch(text):
        return "flag"
    return "number" if _INTEGER.fullmatch(text) or _NUMBER.fullmatch(text) else "text"


def _number(text: str) -> int | float:
    if _INTEGER.fullmatch(text):
        return int(text)
    if text[:2] in ("0x", "0o"):
        return int(text, 0)
    return float(re.sub(r"\.(inf|nan)", r"\1", text, flags=re.IGNORECASE))
