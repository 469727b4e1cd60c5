"""JSON variables files that SOPS locked: they can be opened, not edited here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from waybill.core.errors import InvalidInputError
from waybill.vault.model import Document, Kind, Leaf, Place


def read(text: str, path: str) -> Document:
    """The values of a JSON text.

    Raises:
        InvalidInputError: It is not JSON, not one object, nested too deep, or has a name twice or with a colon.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise InvalidInputError(f"{path}: a name is given twice in one object.", "Keep one of them.")
        if any(not name or ":" in name for name, _ in pairs):
            raise InvalidInputError(f"{path}: a name is empty or has a colon in it.", "Rename it.")
        return dict(pairs)

    try:
        root = json.loads(text, object_pairs_hook=unique, parse_int=str_of_int, parse_float=str_of_float)
        leaves = list(_leaves(root, ()))
    except json.JSONDecodeError as error:
        raise InvalidInputError(f"{path}, line {error.lineno}: this is not JSON that can be read.") from None
    except RecursionError:
        raise InvalidInputError(f"{path}: this is nested too deep.") from None
    if not isinstance(root, dict):
        raise InvalidInputError(f"{path}: this is not an object of names and values.")
    return Document(
        path=path,
        style="json",
        text=text,
        leaves=tuple(leaf for leaf in leaves if leaf.place[0] != "sops"),
        metadata={leaf.place[1:]: leaf for leaf in leaves if leaf.place[0] == "sops"},
        nested=int(any(isinstance(value, dict | list) for name, value in root.items() if name != "sops")),
        flat=False,
    )


class str_of_int(str):  # noqa: N801
    """An integer's own digits."""

    __slots__ = ()


class str_of_float(str):  # noqa: N801
    """A decimal's own digits."""

    __slots__ = ()


def _leaves(value: Any, place: Place) -> Iterator[Leaf]:
    match value:
        case dict():
            for name, item in value.items():
                yield from _leaves(item, (*place, name))
        case list():
            for index, item in enumerate(value):
                yield from _leaves(item, (*place, index))
        case bool():
            yield Leaf(place, "bool", str(value), 1)
        case None:
            yield Leaf(place, "null", "", 1)
        case _:
            kind: Kind = (
                "int" if isinstance(value, str_of_int) else "float" if isinstance(value, str_of_float) else "str"
            )
            yield Leaf(place, kind, str(value), 1)
