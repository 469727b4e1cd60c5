r"""Variables: what a service gets, and the file that carries them on a host.

A host keeps them in one file in tmpfs, quoted as systemd's ``EnvironmentFile=`` reads it, and both the systemd units
and the process keeper read that file. Source: systemd.exec(5); systemd drops values with control characters other
than tab and line end without failing, so those are refused here, before anything is locked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from waybill.core.errors import InvalidInputError
from waybill.vault.model import Leaf

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_LINE: Final = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\$`]|\\["\\$`])*)"\n')
_ESCAPE: Final = re.compile(r'(["\\$`])')
_UNESCAPE: Final = re.compile(r'\\(["\\$`])')
_LONGEST: Final = 128 * 1024 - 1
"""Linux: one NAME=value may have 131,072 bytes with its NUL (MAX_ARG_STRLEN)."""


def check(leaves: Sequence[Leaf], path: str, nested: int = 0) -> dict[str, str]:
    """The variables in the leaves of a file; null gives an empty value.

    Args:
        leaves: Of a plain or opened document.
        path: Its name in sentences.
        nested: Line of a map or list among the values, 0 when there is none.

    Raises:
        InvalidInputError: A value is a map or a list, or a name or value cannot be one of an environment.
    """
    if nested:
        raise InvalidInputError(
            f"{path}, line {nested}: a map or list is no variable.",
            "Give every value a name of its own, or put the JSON text of it in quotes.",
        )
    variables = {}
    for leaf in leaves:
        where = f"{path}, line {leaf.line}"
        name, value = leaf.name, leaf.shown
        if not NAME.fullmatch(name):
            raise InvalidInputError(
                f"{where}: the name is none that an environment can hold.",
                "Letters, digits and _, not a digit first; no 'export', no spaces.",
            )
        if _CONTROL.search(value):
            raise InvalidInputError(
                f"{where}: {name} holds a control character, which systemd would drop the whole variable for.",
                "A value may hold tabs and line ends (no carriage returns); encode others as base64.",
            )
        if len(name) + 1 + len(value.encode()) > _LONGEST:
            raise InvalidInputError(f"{where}: {name} is longer than Linux allows (128 KiB).", "Ship it as a file.")
        variables[name] = value
    return variables


def environment_file(variables: Mapping[str, str]) -> str:
    """The text of a file that systemd's ``EnvironmentFile=`` reads as exactly these variables.

    Raises:
        InvalidInputError: A name or value cannot be one of an environment.
    """
    check([Leaf((name,), "str", value, 0) for name, value in variables.items()], "the environment")
    quoted = ((name, _ESCAPE.sub(r"\\\1", value)) for name, value in variables.items())
    return "".join(f'{name}="{value}"\n' for name, value in quoted)


def parse_environment_file(text: str) -> dict[str, str]:
    """The variables in a text that ``environment_file`` wrote, for the process keeper.

    Raises:
        InvalidInputError: It is not of that form, or a name comes twice.
    """
    variables: dict[str, str] = {}
    at = 0
    while at < len(text):
        match = _LINE.match(text, at)
        if match is None or match[1] in variables:
            line = text.count("\n", 0, at) + 1
            raise InvalidInputError(f"the environment file is damaged from line {line} on.", "Deploy again.")
        variables[match[1]] = _UNESCAPE.sub(r"\1", match[2])
        at = match.end()
    return variables
