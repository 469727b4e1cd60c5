r"""dotenv variables files, exactly as SOPS reads them: ``NAME=value``, no quotes, no trimming, ``\n`` is a line end."""

from __future__ import annotations

import re
from typing import Final

from waybill.core.errors import InvalidInputError
from waybill.vault.model import Document, Leaf, Note, Place

_META: Final = "sops_"
_STEP: Final = re.compile(r"__(map|list)_")


def read(text: str, path: str) -> Document:
    """The values of a dotenv text, plain or locked.

    Raises:
        InvalidInputError: A line is neither empty, a comment nor NAME=value; a name comes twice or has a colon; a
            line ends with a carriage return.
    """
    leaves: list[Leaf] = []
    notes: list[Note] = []
    metadata: dict[Place, Leaf] = {}
    blocks: list[tuple[int, int]] = []
    seen: set[str] = set()
    at = 0
    for number, line in enumerate(text.split("\n"), 1):
        start, end = at, at + len(line)
        at = end + 1
        if line.endswith("\r"):
            raise InvalidInputError(
                f"{path}, line {number}: it ends with a carriage return.", "Save the file with Unix line ends."
            )
        if not line:
            continue
        if line.startswith("#"):
            notes.append(Note(line[1:], start + 1, end))
            continue
        name, equals, value = line.partition("=")
        if not equals or not name or ":" in name:
            raise InvalidInputError(
                f"{path}, line {number}: this is neither NAME=value nor a comment.",
                r"A value of several lines is written in one, with \n between them.",
            )
        if name in seen:
            raise InvalidInputError(f"{path}, line {number}: a name is given twice.", "Keep one of them.")
        seen.add(name)
        leaf = Leaf((name,), "str", value.replace("\\n", "\n"), number, start + len(name) + 1, end)
        if name.startswith(_META):
            metadata[_place(name)] = leaf
            blocks.append((start, min(at, len(text))))
        else:
            leaves.append(leaf)
    return Document(
        path=path,
        style="dotenv",
        text=text,
        leaves=tuple(leaves),
        notes=tuple(notes),
        metadata=metadata,
        blocks=tuple(blocks),
    )


def _place(name: str) -> Place:
    """``sops_age__list_0__map_enc`` stands for ``("age", 0, "enc")``."""
    first, *rest = _STEP.split(name.removeprefix(_META))
    steps: list[str | int] = [first]
    for kind, step in zip(rest[::2], rest[1::2], strict=True):
        steps.append(int(step) if kind == "list" and step.isdecimal() and len(step) < 6 else step)
    return tuple(steps)


def write(leaf: Leaf, path: str) -> str:
    """What stands after ``NAME=``.

    Raises:
        InvalidInputError: The value holds a backslash followed by n, which dotenv reads as a line end.
    """
    if "\\n" in leaf.text:
        raise InvalidInputError(
            f"{path}: {leaf.name} holds a backslash followed by n, which a dotenv file cannot tell from a line end.",
            "Keep this environment's variables in YAML.",
        )
    return leaf.shown.replace("\n", "\\n")


def metadata(recipients: list[tuple[str, str]], modified: str, mac: str) -> str:
    """The ``sops_`` lines of a file that waybill made; ``recipients`` are pairs of recipient and armor."""
    lines = []
    for index, (recipient, armor) in enumerate(recipients):
        enc = (armor.strip() + "\n").replace("\n", "\\n")
        lines += [f"age__list_{index}__map_enc={enc}", f"age__list_{index}__map_recipient={recipient}"]
    lines += [f"lastmodified={modified}", f"mac={mac}", "unencrypted_suffix=_unencrypted", "version=3.9.0"]
    return "".join(f"{_META}{line}\n" for line in lines)
