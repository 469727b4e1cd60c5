"""The text of a systemd unit file: values that systemd reads back exactly as they were meant.

systemd.syntax(7) and systemd.exec(5): words in double quotes know C escapes, ``%`` begins a specifier everywhere, a
backslash at the end of a line joins it to the next, and a path is taken as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from waybill.core.errors import InvalidInputError

Section = list[tuple[str, str]]

_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "%": "%%"})


def quoted(value: str) -> str:
    """One word, for settings that take words: ``ExecStart``, ``Environment``, ``ReadWritePaths``.

    Raises:
        InvalidInputError: It holds a control character other than tab and newline, or is no Unicode text; systemd
            would drop it with no more than a line in the journal.
    """
    if any(
        (ord(sign) < 32 and sign not in "\n\t") or ord(sign) == 127 or 0xD800 <= ord(sign) < 0xE000 for sign in value
    ):
        raise InvalidInputError("a unit file cannot hold this value: it has a control character in it.")
    return f'"{value.translate(_ESCAPES)}"'


def path(value: str) -> str:
    """An absolute path, for settings that take one path: ``WorkingDirectory``, ``EnvironmentFile``.

    Raises:
        InvalidInputError: It is relative, or holds what systemd would read as more than a path.
    """
    if (
        not value.startswith("/")
        or any(sign in '\\*?[]"' or not sign.isprintable() for sign in value)
        or value[-1] == " "
    ):
        raise InvalidInputError(f"a unit file cannot name the path {value!r}.")
    return value.replace("%", "%%")


def render(sections: Mapping[str, Section]) -> str:
    """The unit file of these sections, in their order."""
    blocks = []
    for name, rows in sections.items():
        blocks.append("\n".join([f"[{name}]", *(f"{key}={value}" for key, value in rows)]) + "\n")
    return "\n".join(blocks)
