"""What a detector said, as values: frames, stacks, reports."""

from __future__ import annotations

from typing import Literal

import msgspec

MISSING = "?"
"""Stands for a side of a race that is not known."""


class Frame(msgspec.Struct, frozen=True):
    """One call of a stack.

    Attributes:
        function: As the detector printed it, without ``()``.
        file: Path, as printed; empty when it was lost.
        line: In that file; 0 when it was lost.
        module: Program or library (C and C++ only).
    """

    function: str
    file: str = ""
    line: int = 0
    module: str = ""


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """One access, innermost frame first.

    Attributes:
        access: What was done to the memory.
        previous: Whether it is the earlier one of the two.
        by: ``goroutine 7``, ``main goroutine``, ``thread T2``.
        address: Hexadecimal; empty in reports of Go before 1.7.
        frames: Empty when the detector could not restore them.
    """

    access: Literal["read", "write"]
    previous: bool
    by: str
    address: str = ""
    frames: tuple[Frame, ...] = ()


class Creation(msgspec.Struct, frozen=True, kw_only=True):
    """Where a goroutine or thread was started."""

    of: str
    state: str = ""
    frames: tuple[Frame, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One report of a detector.

    Attributes:
        file: The log that it was found in; ``-`` for standard input.
        line: Of its first line, counted from 1.
        key: The first application frames of both sides, sorted; ``?`` where one is missing.
        title: For an issue; does not change with builds or with the order of the two sides.
        key_id: What is compared: the version of the rule, and a hash.
        stacks: The accesses.
        creation: Where the goroutines or threads were started.
        complete: Both sides are known, the end was seen, and nothing of another report is in it.
        mixed: Lines of two reports are interleaved in it.
        language: Whose detector wrote it.
        seen: RFC 3339 UTC, from the log's own time; empty when its lines have none.
        text: Everything from marker to end, without prefixes and colours.
    """

    file: str
    line: int
    key: tuple[str, str]
    title: str
    key_id: str
    stacks: tuple[Stack, ...]
    creation: tuple[Creation, ...]
    complete: bool
    mixed: bool = False
    language: Literal["go", "c"] = "go"
    seen: str = ""
    text: str = ""

    @property
    def known(self) -> tuple[str, ...]:
        """The sides that are known."""
        return tuple(side for side in self.key if side != MISSING)
