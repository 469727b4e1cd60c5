"""Writes the reference that is made from the code: ``make docs``. A test holds what is committed against the code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from waybill.deploy import servicefile_schema

ROOT = Path(__file__).parent
BEGIN, END = "<!-- made by make docs: begin -->\n", "<!-- made by make docs: end -->\n"

WHOLE: dict[str, Callable[[], str]] = {f"reference/{servicefile_schema.NAME}": servicefile_schema.text}
"""Files that are made whole."""
PARTS: dict[str, Callable[[], str]] = {"guides/service-file.md": servicefile_schema.reference}
"""Files of which the piece between the two marks is made."""


def pages() -> dict[str, str]:
    """What each file should hold, by its path below docs/."""
    made = {path: write() for path, write in WHOLE.items()}
    for path, write in PARTS.items():
        head, _, rest = (ROOT / path).read_text().partition(BEGIN)
        made[path] = f"{head}{BEGIN}\n{write()}\n{END}{rest.partition(END)[2]}"
    return made


if __name__ == "__main__":
    for path, text in pages().items():
        (ROOT / path).write_text(text)
