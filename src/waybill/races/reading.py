"""One scan: every log from where it was left, whatever happened to its name meanwhile.

A log is known again by its number in the file system, by its beginning, and by the bytes before the position; so it
may be renamed, copied and emptied, or compressed, between two scans.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from waybill.core.clock import later, stamp
from waybill.races.scan import Found, Readable, Scanner, Tape
from waybill.races.sources import Member, Skipped, opened, series
from waybill.races.state import FINGERPRINT, UNSETTLED, Memory, Position, Sighting, digest, fresh, moved

IDLE = 600
"""Seconds without a write after which nothing more is expected of an unfinished report."""
STDIN = "-"


class Reader:
    """Reads logs into a machine's memory.

    Args:
        memory: Positions and reports.
        build: What ran.
        host: This machine.
        skipped: Gets what could not be read.
        counted: Told of bytes as they are read.
    """

    def __init__(
        self,
        memory: Memory,
        build: str,
        host: str,
        skipped: list[Skipped],
        counted: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._memory = memory
        self._build = build
        self._host = host
        self._skipped = skipped
        self._counted = counted

    def stdin(self, stream: Readable) -> Iterator[Found]:
        """The reports of a stream that has no position: one that was seen before is known by its text."""
        scanner = Scanner()
        tape = Tape(stream)
        first = tape.peek()
        with self._memory.writing():
            for found in _all(scanner, tape, STDIN, STDIN, export=first.startswith(b"__CURSOR=")):
                text = f"{self._host}\n{found.report.line}\n{found.report.text}"
                if self._keep(found, hashlib.sha256(text.encode()).hexdigest()[:32]):
                    yield found
        self._told(tape, STDIN)

    def files(self, members: list[Member]) -> Iterator[Found]:
        """The reports that the files hold beyond their positions."""
        known = self._known(members)
        for group in series(members):
            with self._memory.writing():
                yield from self._series(group, known)
        with self._memory.writing():
            self._memory.let_go(later(-86400))
            self._memory.forget()

    def _series(self, group: list[Member], known: dict[tuple[int, int], Position]) -> Iterator[Found]:
        scanner = Scanner()
        ends: list[tuple[Member, Position, int, int]] = []
        grown = False
        for member in group:
            position = known.get((member.device, member.inode)) or fresh()
            same = (position.size, position.changed) == (member.size, member.changed)
            grown = not same
            if same and (member.kind != "plain" or position.offset == member.size):
                ends.append((member, position, position.offset, position.line))
                continue
            try:
                with opened(member, self._counted) as stream:
                    _skip(stream, position.offset, member.kind)
                    tape = Tape(stream, position.offset, position.line)
                    export = member.head.startswith(b"__CURSOR=")
                    for found in scanner.read(tape, str(member.path), position.entry, export=export):
                        if self._keep(found, _identity(found)):
                            yield found
                    self._told(tape, str(member.path))
                    ends.append((member, position, tape.whole, tape.line))
            except OSError as error:
                self._skipped.append(Skipped(str(member.path), error.strerror or str(error)))
        last = group[-1]
        final = last.kind != "plain" or not grown or time.time() - last.changed / 1e9 > IDLE
        begun = scanner.start()
        for found in scanner.rest(final=final):
            if self._keep(found, _identity(found)):
                yield found
        behind = begun is not None and not final
        waiting = False
        for member, position, offset, line in ends:
            done, lines = offset, line
            if waiting:
                done, lines = position.offset, position.line
            elif behind and begun is not None and begun.entry == position.entry:
                done, lines, waiting = begun.offset, begun.line - 1, True
            kept = moved(position, member, done, lines, _tail(member, done))
            if waiting:
                kept = msgspec.structs.replace(kept, size=UNSETTLED)
            self._memory.put_position(kept)

    def _known(self, members: Iterable[Member]) -> dict[tuple[int, int], Position]:
        """(device, number) → how far the file was read."""
        known: dict[tuple[int, int], Position] = {}
        strangers = []
        for member in members:
            found = [one for one in self._memory.by_inode(member) if _same_file(one, member)]
            if found:
                known[member.device, member.inode] = max(found, key=lambda one: one.offset)
            else:
                strangers.append(member)
        taken = {position.entry for position in known.values()}
        for member in strangers:
            for position in self._memory.by_head(member):
                if position.entry not in taken and _same_content(position, member):
                    known[member.device, member.inode] = position
                    taken.add(position.entry)
                    break
        return known

    def _keep(self, found: Found, identity: str) -> bool:
        at = found.report.seen or stamp()
        sighting = Sighting(
            id=identity,
            key_id=found.report.key_id,
            build=self._build,
            day=at[:10],
            at=at,
            state="new" if found.final else "held",
            report=found.report,
        )
        return self._memory.saw(sighting)

    def _told(self, tape: Tape, path: str) -> None:
        if tape.problem:
            self._skipped.append(Skipped(path, f"read up to its fault: {tape.problem}"))


def _all(scanner: Scanner, tape: Tape, file: str, entry: str, *, export: bool) -> Iterator[Found]:
    yield from scanner.read(tape, file, entry, export=export)
    yield from scanner.rest(final=True)


def _identity(found: Found) -> str:
    return hashlib.sha256(f"{found.origin.entry}:{found.origin.offset}".encode()).hexdigest()[:32]


def _same_file(position: Position, member: Member) -> bool:
    if position.size == member.size and position.changed == member.changed:
        return True
    return _begins(position, member) and (member.kind != "plain" or _same_content(position, member))


def _begins(position: Position, member: Member) -> bool:
    """Whether the file begins as it did; one that was empty is like any other, and numbers of files come again."""
    if not position.head_length:
        return False
    head = member.head[: position.head_length]
    return len(head) == position.head_length and digest(head) == position.head


def _same_content(position: Position, member: Member) -> bool:
    """Whether the file holds what was read, up to the position."""
    if not _begins(position, member):
        return False
    if member.kind == "plain":
        return member.size >= position.offset and _fits(position, _before(member, position.offset))
    if not position.tail_length:
        return True
    try:
        with opened(member, lambda _: None) as stream:
            _skip(stream, position.offset - position.tail_length, member.kind)
            return _fits(position, _exactly(stream, position.tail_length))
    except Exception:  # noqa: BLE001 - a damaged archive is not what was read; reading it says why
        return False


def _fits(position: Position, tail: bytes) -> bool:
    tail = tail[len(tail) - position.tail_length :] if position.tail_length else b""
    return len(tail) == position.tail_length and (not tail or digest(tail) == position.tail)


def _tail(member: Member, offset: int) -> bytes:
    return _before(member, offset) if member.kind == "plain" else b""


def _before(member: Member, offset: int) -> bytes:
    try:
        with member.path.open("rb") as file:
            file.seek(max(0, offset - FINGERPRINT))
            return file.read(min(FINGERPRINT, offset))
    except OSError:
        return b""


def _skip(stream: Any, offset: int, kind: str) -> None:
    if kind == "plain":
        stream.seek(offset)
        return
    while offset > 0 and (data := stream.read(min(offset, 1 << 20))):
        offset -= len(data)


def _exactly(stream: Any, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data
