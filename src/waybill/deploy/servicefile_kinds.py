"""The kinds of value that a service file holds: each reads a node and describes itself as JSON Schema.

A kind knows its words ("a duration"), an example, how to read it and what a schema says of it, so that the parser,
its errors, the schema and the guide cannot disagree. ``BAD`` is what a kind returns once it has noted a fault; reading
goes on with the rest of the file.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, cast

import msgspec

from waybill.deploy.servicefile_yaml import Faults, Node, shown


class Bad:
    """The type of ``BAD``."""

    def __repr__(self) -> str:
        return "BAD"


BAD: Final = Bad()

Schema = dict[str, Any]


class Kind(Protocol):
    """A kind of value.

    Attributes:
        words: What it is, as a sentence needs it: "a duration".
        example: One, as it stands in a file.
    """

    @property
    def words(self) -> str: ...  # noqa: D102
    @property
    def example(self) -> str: ...  # noqa: D102

    def read(self, node: Node, faults: Faults) -> Any:
        """The value of a node, or ``BAD`` when a fault was noted."""
        ...

    def schema(self) -> Schema:
        """JSON Schema of it, draft 2020-12."""
        ...


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """A text; numbers are taken as they are written, so that ``--port, 8080`` and ``2024.10`` need no quotes.

    Attributes:
        pattern: Regular expression of the whole text; the schema shows it too.
        rule: The pattern in words, for the error.
        convert: Turns the text into the value; raises ValueError with a sentence.
        suggest: A valid text near an invalid one, shown in the error; empty when there is none.
    """

    words: str
    example: str
    pattern: str = ""
    rule: str = ""
    convert: Callable[[str], Any] | None = None
    suggest: Callable[[str], str] | None = None
    numbers: bool = True

    def read(self, node: Node, faults: Faults) -> Any:
        """The text, converted."""
        if node.type not in ("text", "number") or (node.type == "number" and not self.numbers):
            quoted = f'; write "{node.text}" in quotes' if node.type == "flag" else f", such as {self.example}"
            return bad(faults, node, f"{node.where} must be {self.words}{quoted}; it is {node}.")
        if self.pattern and not re.fullmatch(self.pattern, node.text):
            near = self.suggest(node.text) if self.suggest else ""
            hint = f"write {near}" if near and re.fullmatch(self.pattern, near) else f"an example is {self.example}"
            rule = self.rule or f"must be {self.words}"
            return bad(faults, node, f"{node.where} {rule}; {hint}, not {shown(node.text)}.")
        if any((ord(letter) < 32 and letter not in "\t\n") or 0xD7FF < ord(letter) < 0xE000 for letter in node.text):
            return bad(faults, node, f"{node.where} holds a control character: {shown(node.text)}.")
        try:
            return self.convert(node.text) if self.convert else node.text
        except ValueError as error:
            return bad(faults, node, f"{node.where} {error}")

    def schema(self) -> Schema:
        """A string, or a number when it may be written without quotes."""
        kind: Schema = {"type": ["string", "number"] if self.numbers else "string"}
        return kind | ({"pattern": f"^(?:{self.pattern})$"} if self.pattern else {"minLength": 1})


class Integer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole number from ``low`` to ``high``."""

    low: int
    high: int
    words: str
    example: str

    def read(self, node: Node, faults: Faults) -> Any:
        """The number."""
        value = node.plain() if node.type == "number" else None
        if not isinstance(value, int) or not self.low <= value <= self.high:
            return bad(faults, node, f"{node.where} must be {self.words}, such as {self.example}; it is {node}.")
        return value

    def schema(self) -> Schema:
        """An integer with its bounds."""
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


class Flag(msgspec.Struct, frozen=True, kw_only=True):
    """True or false."""

    words: str = "true or false"
    example: str = "true"

    def read(self, node: Node, faults: Faults) -> Any:
        """The flag."""
        if node.type != "flag":
            return bad(faults, node, f"{node.where} must be true or false; it is {node}.")
        return node.plain()

    def schema(self) -> Schema:
        """A boolean."""
        return {"type": "boolean"}


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One of a few words."""

    choices: tuple[str, ...]

    @property
    def words(self) -> str:
        """The words, for an error."""
        return " or ".join(self.choices)

    @property
    def example(self) -> str:
        """The first."""
        return self.choices[0]

    def read(self, node: Node, faults: Faults) -> Any:
        """The word."""
        if node.type != "text" or node.text not in self.choices:
            near = difflib.get_close_matches(node.text, self.choices, n=1)
            hint = f"did you mean {near[0]!r}? It" if near else "it"
            return bad(faults, node, f"{node.where} must be {self.words}; {hint} is {node}.")
        return node.text

    def schema(self) -> Schema:
        """An enumeration."""
        return {"enum": list(self.choices)}


class Amount(msgspec.Struct, frozen=True, kw_only=True):
    """A number with its unit, such as ``1h30m`` or ``512MiB``; a bare number is refused, since nobody sees its unit.

    Attributes:
        units: Symbol and how many of the smallest unit it is, the largest first.
        per: How many of the smallest unit make 1 of the value: 1000 ms a second, 1 B a byte.
        low: The least that is allowed, as the value has it.
        high: The most.
        bare: Symbol suggested for a bare number.
    """

    words: str
    example: str
    units: tuple[tuple[str, int], ...]
    per: int
    low: float
    high: float
    bare: str

    def read(self, node: Node, faults: Faults) -> Any:
        """The amount: seconds as a float, bytes as an int."""
        match = re.fullmatch(self.pattern(), node.text) if node.type == "text" else None
        if match is None:
            near = self._near(node)
            return bad(faults, node, f"{node.where} must be {self.words}, such as {near}; it is {node}.")
        parts = zip(match.groups(), self.units, strict=True)
        count = sum(int(digits) * factor for digits, (_, factor) in parts if digits)
        value = count if self.per == 1 else count / self.per  # one division, so that 2s397ms is 2.397
        if not self.low <= value <= self.high:
            span = f"from {self.format(self.low)} to {self.format(self.high)}"
            return bad(faults, node, f"{node.where} may be {span}; it is {shown(node.text)}.")
        return value

    def pattern(self) -> str:
        """Regular expression: each unit at most once, the largest first."""
        return r"(?=\d)" + "".join(rf"(?:(\d{{1,9}}){symbol})?" for symbol, _ in self.units)

    def format(self, value: float) -> str:
        """The amount as a file writes it."""
        rest = round(value * self.per)
        out = ""
        for symbol, factor in self.units:
            count, rest = divmod(rest, factor)
            out += f"{count}{symbol}" if count else ""
        return out or f"0{self.bare}"

    def schema(self) -> Schema:
        """A string with a pattern."""
        return {"type": "string", "pattern": f"^{self.pattern().replace('(?:(', '(?:').replace('})', '}')}$"}

    def _near(self, node: Node) -> str:
        if node.type == "number" and node.text.isdigit():
            return node.text + self.bare
        found = re.fullmatch(r"\s*(\d{1,9})\s*([a-zA-Z]+)\s*", node.text)
        if found:
            for symbol, _ in self.units:
                if symbol[0].lower() == found[2][0].lower() and (len(symbol) == 1 or len(found[2]) <= len(symbol)):
                    return found[1] + symbol
        return self.example


class ListOf(msgspec.Struct, frozen=True, kw_only=True):
    """A list of one kind, as a tuple.

    Attributes:
        item: Kind of each.
        unique: Whether the same one twice is a fault.
    """

    words: str
    example: str
    item: Kind
    unique: bool = True

    def read(self, node: Node, faults: Faults) -> Any:
        """The items."""
        if node.type != "list":
            near = flow([node.text]) if node.type in ("text", "number") and node.text else self.example
            return bad(faults, node, f"{node.where} must be {self.words}: write {near}; it is {node}.")
        if not node.items:
            return bad(faults, node, f"{node.where} is an empty list; name one, such as {self.example}.")
        values = [self.item.read(item, faults) for item in node.items]
        if any(value is BAD for value in values):
            return BAD
        if self.unique:
            for index, value in enumerate(values):
                if value in values[:index]:
                    return bad(faults, node.items[index], f"{node.items[index].where} repeats {shown(str(value))}.")
        return tuple(values)

    def schema(self) -> Schema:
        """An array that is not empty."""
        return {"type": "array", "items": self.item.schema(), "minItems": 1} | (
            {"uniqueItems": True} if self.unique else {}
        )


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """An argument vector: no shell reads it."""

    words: str = "a list of arguments"
    example: str = "[make, dist]"

    def read(self, node: Node, faults: Faults) -> Any:
        """The arguments."""
        if node.type == "text" and node.text.strip():
            return bad(
                faults, node, f"{node.where} must be a list, since no shell reads it: write {as_list(node.text)}."
            )
        value = ListOf(words=self.words, example=self.example, item=ARGUMENT, unique=False).read(node, faults)
        if value is BAD:
            return BAD
        program = node.items[0]
        if not program.text.strip():
            return bad(faults, program, f"{node.where} begins with the program; its name is empty.")
        if "/" in program.text and ".." in program.text.split("/"):
            return bad(faults, program, f"{node.where} leaves the tree: {shown(program.text)} has '..' in it.")
        return value

    def schema(self) -> Schema:
        """An array of texts."""
        return {"type": "array", "items": ARGUMENT.schema() | {"minLength": 0}, "minItems": 1}


class MapOf(msgspec.Struct, frozen=True, kw_only=True):
    """A mapping from names that the author chooses to values of one kind.

    Attributes:
        key: Kind of the names.
        value: Kind of the values.
        refusals: What an error suggests for a node of a type, instead of the example.
    """

    words: str
    example: str
    key: Text
    value: Kind
    refusals: tuple[tuple[str, str], ...] = ()

    def read(self, node: Node, faults: Faults) -> Any:
        """The entries that could be read, in the order of the file."""
        if node.type != "mapping":
            near = dict(self.refusals).get(node.type, f"write {self.example}")
            return bad(faults, node, f"{node.where} must be {self.words}: {near}; it is {node}.")
        if not node.entries:
            return bad(faults, node, f"{node.where} is empty; name at least one, such as {self.example}.")
        values: dict[str, Any] = {}
        for key, item in node.entries:
            # A key has no place in the dotted path of its own; it is told by the path of its value.
            name = self.key.read(msgspec.structs.replace(key, where=f"the name of {item.where}"), faults)
            value = self.value.read(item, faults)
            if name is not BAD and value is not BAD:
                values[name] = value
        return values

    def schema(self) -> Schema:
        """An object with names by pattern."""
        return {
            "type": "object",
            "propertyNames": {"pattern": f"^(?:{self.key.pattern})$"},
            "additionalProperties": self.value.schema(),
            "minProperties": 1,
        }


def bad(faults: Faults, node: Node, sentence: str) -> Bad:
    """Note a fault and return ``BAD``."""
    faults.add(node, sentence)
    return BAD


def flow(items: Sequence[str]) -> str:
    """A YAML list in one line, with quotes only where they are needed."""
    plain = re.compile(r"[A-Za-z0-9_./+=@-]+")
    words = ("true", "false", "null")

    def written(item: str) -> str:
        bare = plain.fullmatch(item) and item.lower() not in words
        return item if bare else json.dumps(item, ensure_ascii=False)

    return f"[{', '.join(map(written, items))}]"


def as_list(text: str) -> str:
    """The list that a command line should be: split as a shell does, or given to a shell when it needs one."""
    try:
        parts = shlex.split(text)
    except ValueError:
        parts = []
    needs_shell = not parts or re.search(r"[|&;<>$`*?~\n]|^\w+=", text)
    return flow(["sh", "-c", text]) if needs_shell else flow(parts)


def relative(text: str) -> str:
    """A path inside the tree, normalised; ValueError with a sentence when it is none."""
    if not text:
        raise ValueError("is empty; name a path, such as dist.")
    if text.startswith(("/", "~")) or (len(text) > 1 and text[1] == ":"):
        raise ValueError(f"must be relative to the folder of this file, not {shown(text)}.")
    parts = text.split("/")
    if ".." in parts or "\\" in text or "\n" in text:
        raise ValueError(f"leaves the tree or is no plain path: {shown(text)}; write it without '..' and '\\'.")
    if ".git" in parts:
        raise ValueError(f"reaches into git's own folder: {shown(text)}.")
    return "/".join(part for part in parts if part not in ("", ".")) or "."


ARGUMENT: Final[Kind] = cast("Kind", Text(words="a text", example="serve"))

HOUR = 3600.0
DAY = 24 * HOUR


def duration(low: float, high: float) -> Amount:
    """A duration in seconds between two bounds."""
    units = (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))
    return Amount(words="a duration", example="30s", units=units, per=1000, low=low, high=high, bare="s")


def size(low: int, high: int) -> Amount:
    """A size in bytes between two bounds."""
    units = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))
    return Amount(words="a size", example="512MiB", units=units, per=1, low=low, high=high, bare="B")
