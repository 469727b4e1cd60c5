"""From bytes to reports: finds markers at memory speed, and reads line by line only around them.

A ``Tape`` gives lines of a stream with their offsets and jumps to the next marker. ``Scanner`` keeps the reports that
are under way, several at once when processes share a log, and outlives a file: a report that began in a log that was
rotated away goes on in the next one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from waybill.races import unwrap
from waybill.races.grammar import ACCESS, MARKER, MARKERS, Block
from waybill.races.model import Report
from waybill.races.unwrap import Line

BLOCK = 1024 * 1024
LINE = 16 * 1024
"""Bytes of a line that are looked at; a longer one is foreign text."""
GAP = 2000
"""Foreign lines after which a report is given up as cut short."""
ENDLESS = 20_000
"""Lines after which a report is given up."""
OPEN = 64
"""Reports under way at once; more is no log."""
PREFIX = 512
"""Characters that may stand before a marker."""


class Readable(Protocol):
    """A binary stream."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; empty at the end."""
        ...


class Tape:
    """A binary stream with offsets, read in blocks.

    Args:
        stream: What to read.
        offset: Where it stands.
        line: Lines before that.
    """

    def __init__(self, stream: Readable, offset: int = 0, line: int = 0) -> None:
        # Of a compressed file that is cut short, ``read1`` gives what comes before the fault; ``read`` loses it.
        self._read = getattr(stream, "read1", stream.read)
        self._data = b""
        self._at = 0
        self._base = offset
        self._lines = line
        self.problem = ""
        self.whole = offset
        """Where the last line that has its end ends; what stands after it may still be written."""

    @property
    def offset(self) -> int:
        """Where the next line begins."""
        return self._base + self._at

    @property
    def line(self) -> int:
        """Lines before it."""
        return self._lines

    def jump(self, before: bytes = b"\n") -> bool:
        """Go to the next marker; False, and at the end, when there is none.

        Args:
            before: Ends what stands before the line, or before the paragraph, that holds the marker.
        """
        while True:
            found = [place for place in (self._data.find(marker, self._at) for marker in MARKERS) if place >= 0]
            if found:
                self._go(max(self._data.rfind(before, self._at, min(found)) + len(before), self._at))
                return True
            rest = max(self._data.rfind(before, self._at) + len(before), self._at)
            rest = max(min(rest, len(self._data)), len(self._data) - LINE)
            self._go(rest)
            self.whole = self.offset
            if not self._more():
                self._go(len(self._data))
                return False

    def next(self) -> tuple[int, int, bytes] | None:
        """(offset, number, line with its end); None at the end. Of a line that is too long, only its beginning."""
        offset, number = self.offset, self._lines + 1
        end = self._data.find(b"\n", self._at)
        while end < 0 and len(self._data) - self._at <= LINE:
            if not self._more():
                break
            end = self._data.find(b"\n", self._at)
        if end < 0 and self._at == len(self._data):
            return None
        stop = len(self._data) if end < 0 else end + 1
        raw = self._data[self._at : min(stop, self._at + LINE)]
        self._go(stop)
        while end < 0 and self._more():  # the rest of a line that is too long
            end = self._data.find(b"\n", self._at)
            self._go(len(self._data) if end < 0 else end + 1)
        self.whole = offset if end < 0 else self.offset
        return offset, number, raw

    def peek(self) -> bytes:
        """The next few bytes, which stay."""
        if self._at == len(self._data):
            self._more()
        return self._data[self._at : self._at + 64]

    def exactly(self, size: int) -> bytes:
        """The next bytes, line ends or not."""
        while len(self._data) - self._at < size and self._more():
            pass
        raw = self._data[self._at : self._at + size]
        self._go(self._at + len(raw))
        return raw

    def _go(self, place: int) -> None:
        self._lines += self._data.count(b"\n", self._at, place)
        self._at = place

    def _more(self) -> bool:
        try:
            block = self._read(BLOCK)
        except (OSError, EOFError, ValueError) as error:  # a compressed file that is cut short or damaged
            self.problem = str(error) or type(error).__name__
            return False
        except Exception as error:  # noqa: BLE001 - zlib, lzma and zstd have error types of their own
            self.problem = f"{type(error).__name__}: {error}"
            return False
        if not block:
            return False
        self._base += self._at
        self._data = self._data[self._at :] + block
        self._at = 0
        return True


@dataclass
class Origin:
    """Where a report began, or a file's scan."""

    file: str
    entry: str
    offset: int
    line: int


@dataclass
class Found:
    """A report, and where it stands.

    Attributes:
        report: The report.
        origin: Where its marker is.
        final: False while more of it may come: it stands at the end of a log that may grow.
    """

    report: Report
    origin: Origin
    final: bool = True


@dataclass
class _Open:
    block: Block
    origin: Origin
    stream: str
    prefix: str
    seen: str
    mode: str = ""
    lines: int = 0
    foreign: int = 0
    before: _Open | None = None
    varying: re.Pattern[str] = field(default_factory=lambda: re.compile(""))

    def own(self, text: str) -> str | None:
        """The text without this report's prefix; None when the line has another."""
        if not self.prefix:
            return text
        if not self.mode:
            self._decide(text)
        if self.mode in ("", "exact"):
            if text.startswith(self.prefix):
                return text[len(self.prefix) :]
            return "" if text and text.rstrip() == self.prefix.rstrip() else None
        if self.mode == "varying":
            found = self.varying.match(text)
            return text[found.end() :] if found else None
        return text

    def _decide(self, text: str) -> None:
        """The first access after the marker shows whether the prefix is the same on every line."""
        found = self.varying.match(text)
        if text.startswith(self.prefix) and ACCESS.match(text[len(self.prefix) :].strip()):
            self.mode = "exact"
        elif found and ACCESS.match(text[found.end() :].strip()):
            self.mode = "varying"
        elif ACCESS.match(text.strip()):
            self.mode = "none"


class Scanner:
    """Finds the reports of one log and of those that it was rotated into."""

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._held: _Open | None = None
        self._partial: dict[str, Line] = {}

    def read(self, tape: Tape, file: str, entry: str, *, export: bool = False) -> Iterator[Found]:
        """The reports of one file; those that are not at their end stay under way.

        Args:
            tape: The file.
            file: Its name.
            entry: Its identity, which outlives renaming.
            export: Whether it is the output of ``journalctl -o export``.
        """
        while self._open or self._held or tape.jump(b"\n\n" if export else b"\n"):
            if (taken := tape.next()) is None:
                return
            offset, number, raw = taken
            origin = Origin(file, entry, offset, number)
            if export and (made := _entry(tape, raw)) is not None:
                yield from self._take(made, origin)
            elif len(raw) < LINE:
                yield from self._take(self._joined(unwrap.lines(raw)), origin)

    def rest(self, *, final: bool) -> Iterator[Found]:
        """What is still under way when there is no more to read."""
        under_way = [*([self._held] if self._held else []), *self._open]
        for one in under_way:
            for part in _chain(one):
                if (report := _report(part)) is not None:
                    yield Found(report, part.origin, final)
        if final:
            self._open.clear()
            self._held = None

    def start(self) -> Origin | None:
        """Where the earliest report that is under way began."""
        under_way = [*([self._held] if self._held else []), *self._open]
        return _chain(under_way[0])[0].origin if under_way else None

    def _joined(self, made: list[Line]) -> list[Line]:
        if not self._partial and not any(line.partial for line in made):
            return made
        whole = []
        for line in made:
            begun = self._partial.pop(line.stream, None)
            text = (begun.text if begun else "") + line.text
            joined = Line(line.stream, text[:LINE], begun.seen if begun else line.seen)
            if line.partial and len(self._partial) < OPEN:
                self._partial[line.stream] = joined
            else:
                whole.append(joined)
        return whole

    def _take(self, made: list[Line], origin: Origin) -> Iterator[Found]:
        for line in made:
            text = line.text.rstrip()
            marker = MARKER.search(text) if text.endswith(("RACE", ")")) else None
            if marker is not None and _opens(text[: marker.start()]):
                yield from self._begin(line, marker, origin)
            elif self._open:
                yield from self._feed(line)

    def _begin(self, line: Line, marker: re.Match[str], origin: Origin) -> Iterator[Found]:
        prefix = line.text.rstrip()[: marker.start()]
        before, self._held = self._held, None
        if before is not None and before.stream != line.stream:
            yield from self._give(before)
            before = None
        for one in tuple(self._open):
            if one.stream == line.stream and (one.mode in ("none", "varying") or one.prefix == prefix):
                self._open.remove(one)
                one.before = one.before or before
                before = one
                break
        if len(self._open) >= OPEN:
            yield from self._close(self._open[0])
        varying = re.compile(re.sub(r"\d+", r"\\d+", re.escape(prefix)))
        block = Block("go" if marker[1] else "c", marker[0])
        self._open.append(_Open(block, origin, line.stream, prefix, line.seen, before=before, varying=varying))

    def _feed(self, line: Line) -> Iterator[Found]:
        if self._held is not None:
            held, self._held = self._held, None
            yield from self._give(held)
        for one in tuple(self._open):
            own = one.own(line.text) if one.stream == line.stream else None
            one.lines += 1
            one.foreign = 0 if own is not None and one.block.feed(own) else one.foreign + 1
            if one.block.ended and not one.block.two and self._held is None:
                self._open.remove(one)
                self._held = one  # the next line tells whether another process broke in
            elif one.block.ended or one.foreign > GAP or one.lines > ENDLESS:
                yield from self._close(one)

    def _close(self, one: _Open) -> Iterator[Found]:
        self._open.remove(one)
        yield from self._give(one)

    def _give(self, one: _Open) -> Iterator[Found]:
        for part in _chain(one):
            if (report := _report(part)) is not None:
                yield Found(report, part.origin)


def _chain(one: _Open) -> list[_Open]:
    """A report with those that it broke into, oldest first; when it is mixed, so are they."""
    parts = [one]
    while (before := parts[0].before) is not None:
        before.block.mixed = before.block.mixed or (parts[0].block.mixed and not before.block.whole)
        parts.insert(0, before)
    return parts


def _report(one: _Open) -> Report | None:
    return one.block.report(one.origin.file, one.origin.line, one.seen)


def _opens(prefix: str) -> bool:
    """Whether a marker after this text begins a report: quoted ones are mentions."""
    return not prefix or (prefix[-1] in " \t]:|>=)" and len(prefix) < PREFIX)


def _entry(tape: Tape, raw: bytes) -> list[Line] | None:
    """The lines of one entry of ``journalctl -o export``, of which ``raw`` is any line; None between entries."""
    fields: dict[str, str] = {}
    line: bytes | None = raw
    while line is not None and line.strip():
        name, equals, value = line.rstrip(b"\n").partition(b"=")
        if not equals and name:  # binary: eight bytes of length, the value, a line end
            size = int.from_bytes(tape.exactly(8), "little")
            value = tape.exactly(min(size, LINE))
            if size > LINE:
                return []
            tape.next()
        fields[name.decode(errors="replace")] = value.decode(errors="replace")
        taken = tape.next()
        line = None if taken is None else taken[2]
    return unwrap.entry(fields) if fields else None
