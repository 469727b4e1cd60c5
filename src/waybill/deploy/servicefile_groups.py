"""A mapping whose keys are known, made from the rows of a table."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from waybill.deploy.servicefile_kinds import BAD, Amount, Kind, Schema
from waybill.deploy.servicefile_yaml import Faults, Node, shown

HOMES: dict[str, str] = {}
"""Where a key belongs, for the error of one that stands in the wrong place; ``servicefile_keys`` fills it."""


class Key(msgspec.Struct, frozen=True):
    """One row of the table; ``doc`` is a sentence without its full stop."""

    name: str
    kind: Kind
    doc: str


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """A mapping whose keys are known.

    Attributes:
        title: Heading in the guide, and how errors call it.
        struct: The frozen value that it fills; its fields say what is required and what the defaults are.
        keys: The rows.
        finish: Checks the values together and makes the value; notes faults and returns ``BAD`` when they clash.
    """

    title: str
    example: str
    struct: type[msgspec.Struct]
    keys: tuple[Key, ...]
    finish: Callable[[dict[str, Any], Node, Faults], Any] | None = None

    @property
    def words(self) -> str:
        """How an error calls it."""
        return "a mapping"

    def read(self, node: Node, faults: Faults) -> Any:
        """The struct."""
        before = len(faults)
        values = self.values(node, faults)
        if len(faults) > before:
            return BAD
        return self.finish(values, node, faults) if self.finish else self.struct(**values)

    def values(self, node: Node, faults: Faults, others: Iterable[str] = ()) -> dict[str, Any]:
        """The values that could be read, by key; keys in ``others`` are left to the caller."""
        if node.type != "mapping":
            place = node.where or self.title
            faults.add(node, f"{place} must be a mapping, such as {self.example}; it is {node}.")
            return {}
        known = [*(key.name for key in self.keys), *others]
        meant = {unknown_key(name, node, known, faults) for name, _ in node.entries if name.text not in known}
        values: dict[str, Any] = {}
        place = f"{node.where} has" if node.where else "the file has"
        for key in self.keys:
            if (item := node.get(key.name)) is not None:
                values[key.name] = key.kind.read(item, faults)
            elif self.required(key) and key.name not in meant:  # a misspelt key is told once
                example = f"{key.name}: {key.kind.example}"
                faults.add(node, f"{place} no {key.name!r} ({lower(key.doc)}); add one, such as {example}.")
        return {name: value for name, value in values.items() if value is not BAD}

    def required(self, key: Key) -> bool:
        """Whether the key must be there: its field has no default."""
        return self.default(key) is msgspec.NODEFAULT

    def default(self, key: Key) -> Any:
        """The default of the field of the same name; None for a key that is no field."""
        for field in msgspec.structs.fields(self.struct):
            if field.name == key.name:
                return field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        return None

    def schema(self) -> Schema:
        """An object that knows all its keys."""
        properties = {}
        for key in self.keys:
            properties[key.name] = key.kind.schema() | {"description": f"{key.doc}."}
            if (text := default_text(key, self.default(key))) is not None:
                properties[key.name]["default"] = text
        required = [key.name for key in self.keys if self.required(key)]
        return {"type": "object", "properties": properties, "additionalProperties": False} | (
            {"required": required} if required else {}
        )


def unknown_key(name: Node, node: Node, known: list[str], faults: Faults) -> str:
    """Note a key that does not exist; returns the nearest one that does, empty when none is near."""
    near = difflib.get_close_matches(name.text, known, n=1)
    place = f"in {node.where}" if node.where else "at the top"
    if near:
        hint = f"did you mean {near[0]!r}?"
    elif name.text in HOMES:
        hint = f"it belongs to {HOMES[name.text]}."
    else:
        hint = f"known: {', '.join(known)}."
    faults.add(name, f"there is no key {shown(name.text)} {place}; {hint}")
    return near[0] if near else ""


def default_text(key: Key, default: Any) -> Any:
    """A default as the file would write it; None when there is nothing to say."""
    if default is msgspec.NODEFAULT or default is None or default in ((), {}):
        return None
    return key.kind.format(default) if isinstance(key.kind, Amount) else default


def lower(sentence: str) -> str:
    """The sentence with a small first letter, to stand inside another."""
    return sentence[:1].lower() + sentence[1:]
