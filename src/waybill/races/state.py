"""What a machine remembers between two scans: how far each log was read, and what was found there.

One SQLite file. A log's position and the reports that were found up to it are written in one transaction, so whatever
kills the scan, the next one neither loses a report nor sees one twice. A report's id is the log's identity and the
offset; reading it again changes nothing.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from waybill.core.clock import stamp
from waybill.core.errors import ConflictError, NotFoundError, UnavailableError
from waybill.core.ids import new_id
from waybill.races.model import Report
from waybill.races.sources import Member

FINGERPRINT = 1024
"""Bytes at a log's beginning, and before its position, by which its content is known again."""
UNSETTLED = -1
"""The size of a log that is to be read again though it did not change: a report in it is not at its end."""
State = Literal["held", "new", "filed", "quarantine", "discarded"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS position (
  entry TEXT PRIMARY KEY, path TEXT NOT NULL, device INTEGER NOT NULL, inode INTEGER NOT NULL, size INTEGER NOT NULL,
  changed INTEGER NOT NULL, head_length INTEGER NOT NULL, head TEXT NOT NULL, tail_length INTEGER NOT NULL,
  tail TEXT NOT NULL, offset INTEGER NOT NULL, line INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS position_inode ON position (device, inode);
CREATE INDEX IF NOT EXISTS position_head ON position (head_length, head);
CREATE TABLE IF NOT EXISTS sighting (
  id TEXT PRIMARY KEY, key_id TEXT NOT NULL, build TEXT NOT NULL, day TEXT NOT NULL, at TEXT NOT NULL,
  since TEXT NOT NULL, state TEXT NOT NULL, issue TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '',
  report BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS sighting_state ON sighting (state, key_id);
CREATE TABLE IF NOT EXISTS issue (
  key_id TEXT PRIMARY KEY, number TEXT NOT NULL DEFAULT '', attempted REAL NOT NULL DEFAULT 0
);
PRAGMA user_version = 1;
"""


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """How far a log was read.

    Attributes:
        entry: The log's identity; stays through renaming, copying and compressing.
        offset: Decompressed bytes that are done with.
        line: Lines before that.
    """

    entry: str
    path: str
    device: int
    inode: int
    size: int
    changed: int
    head_length: int
    head: str
    tail_length: int
    tail: str
    offset: int
    line: int


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """One report on one machine.

    Attributes:
        id: Of the log and the place in it.
        build: What ran, as the operator calls it; may be empty.
        day: When it was seen, as ``2026-11-20``.
        at: When it was seen, RFC 3339 UTC.
        state: ``held`` while more of it may come, ``new`` until it is filed or put aside.
        issue: Where it was filed.
        reason: Why it is in quarantine.
    """

    id: str
    key_id: str
    build: str
    day: str
    at: str
    state: State
    report: Report
    issue: str = ""
    reason: str = ""


def default_folder() -> Path:
    """Where the state is kept when nobody says otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/waybill/races")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "waybill" / "races"


def digest(data: bytes) -> str:
    """What is kept of some bytes."""
    return hashlib.sha256(data).hexdigest()


class Memory:
    """The state of one machine.

    Args:
        folder: Where it is kept; None keeps it in memory, for dry runs.
    """

    def __init__(self, folder: Path | None) -> None:
        name = ":memory:"
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            name = str(folder / "races.sqlite")
        try:
            self.db = sqlite3.connect(name, timeout=30, isolation_level=None)
            for pragma in ("journal_mode=WAL", "synchronous=FULL"):
                self.db.execute(f"PRAGMA {pragma}")
            self.db.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise UnavailableError(f"the state in {name} cannot be opened: {error}.", "Is it another's?") from error
        self.db.row_factory = sqlite3.Row

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    def copy(self) -> Memory:
        """The same in memory, where changes are forgotten."""
        made = Memory(None)
        self.db.backup(made.db)
        return made

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Everything inside happens, or nothing."""
        try:
            self.db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise ConflictError("another scan uses the same state.", "Wait for it, or give another --state.") from error
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    # how far logs were read

    def by_inode(self, member: Member) -> list[Position]:
        """What is known of the file with this number."""
        rows = self.db.execute(
            "SELECT * FROM position WHERE device = ? AND inode = ?", (member.device, member.inode)
        ).fetchall()
        return [Position(**dict(row)) for row in rows]

    def by_head(self, member: Member) -> list[Position]:
        """What is known of files that began as this one does, the longest beginnings first."""
        found = []
        lengths = self.db.execute("SELECT DISTINCT head_length FROM position WHERE head_length > 0 ORDER BY 1 DESC")
        for (length,) in lengths.fetchall():
            if length <= len(member.head):
                key = (length, digest(member.head[:length]))
                rows = self.db.execute("SELECT * FROM position WHERE head_length = ? AND head = ?", key)
                found += [Position(**dict(row)) for row in rows.fetchall()]
        return found

    def put_position(self, position: Position) -> None:
        """Remember how far a log was read."""
        names = Position.__struct_fields__
        marks = ", ".join("?" * len(names))
        self.db.execute(
            f"INSERT OR REPLACE INTO position ({', '.join(names)}) VALUES ({marks})",  # noqa: S608 - own names
            msgspec.structs.astuple(position),
        )

    def forget(self, keep: int = 20_000) -> None:
        """Forget the oldest positions, so that the file stays small where each process has a log of its own."""
        self.db.execute(
            "DELETE FROM position WHERE entry NOT IN (SELECT entry FROM position ORDER BY changed DESC LIMIT ?)",
            (keep,),
        )

    # what was found

    def saw(self, sighting: Sighting) -> bool:
        """Remember a report; returns whether it is new, or more of it is known now."""
        values = (
            sighting.id,
            sighting.key_id,
            sighting.build,
            sighting.day,
            sighting.at,
            stamp(),
            sighting.state,
            msgspec.json.encode(sighting.report),
        )
        done = self.db.execute(
            "INSERT INTO sighting (id, key_id, build, day, at, since, state, report) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET key_id = excluded.key_id, state = excluded.state, report = excluded.report"
            " WHERE sighting.state = 'held'",
            values,
        )
        return done.rowcount > 0

    def let_go(self, before: str) -> None:
        """Reports that nobody completed since ``before`` stay as they are."""
        self.db.execute("UPDATE sighting SET state = 'new' WHERE state = 'held' AND since < ?", (before,))

    def sightings(self, *states: State) -> list[Sighting]:
        """Reports in these states, oldest first."""
        marks = ", ".join("?" * len(states))
        rows = self.db.execute(
            f"SELECT * FROM sighting WHERE state IN ({marks}) ORDER BY at, id",  # noqa: S608 - only marks
            states,
        )
        return [_sighting(row) for row in rows.fetchall()]

    def sighting(self, start: str) -> Sighting:
        """The report whose id begins so.

        Raises:
            NotFoundError: There is none, or more than one.
        """
        rows = self.db.execute("SELECT * FROM sighting WHERE substr(id, 1, ?) = ?", (len(start), start)).fetchall()
        if len(rows) != 1:
            raise NotFoundError(
                f"{'several reports begin' if rows else 'no report begins'} with {start[:40]!r}.",
                "waybill races list shows their ids.",
            )
        return _sighting(rows[0])

    def settle(self, identity: str, state: State, issue: str = "", reason: str = "") -> None:
        """Say what became of a report."""
        self.db.execute(
            "UPDATE sighting SET state = ?, issue = ?, reason = ? WHERE id = ?", (state, issue, reason, identity)
        )


class LocalNotes:
    """What filing keeps on a machine that has a forge token of its own.

    Args:
        memory: The machine's.
        host: Its name.
    """

    def __init__(self, memory: Memory, host: str) -> None:
        self._memory = memory
        self._db = memory.db
        self._host = host

    def number(self, key_id: str) -> str:
        """Where a race was filed last from here."""
        row = self._db.execute("SELECT number FROM issue WHERE key_id = ?", (key_id,)).fetchone()
        return str(row[0]) if row else ""

    def attempted(self, key_id: str) -> float | None:
        """Seconds since an issue was to be opened."""
        row = self._db.execute("SELECT attempted FROM issue WHERE key_id = ? AND attempted > 0", (key_id,)).fetchone()
        return max(0.0, time.time() - row[0]) if row else None

    def attempt(self, key_id: str) -> None:
        """An issue is about to be opened."""
        self._attempted(key_id, time.time())

    def refused(self, key_id: str) -> None:
        """None was opened."""
        self._attempted(key_id, 0.0)

    def belong(self, sighted: Sequence[str], race: str) -> None:
        """These reports count for this race."""
        with self._memory.writing():
            self._db.executemany("UPDATE sighting SET key_id = ? WHERE id = ?", [(race, one) for one in sighted])

    def filed(self, sighted: Sequence[str], race: str, number: str) -> None:
        """These reports are in this issue."""
        with self._memory.writing():
            for one in sighted:
                self._memory.settle(one, "filed", number)
            self._db.execute(
                "INSERT OR REPLACE INTO issue (key_id, number, attempted) VALUES (?, ?, 0)", (race, number)
            )

    def aside(self, sighted: Sequence[str], reason: str) -> None:
        """These reports need a person."""
        with self._memory.writing():
            for one in sighted:
                self._memory.settle(one, "quarantine", reason=reason)

    def counts(self, races: Iterable[str], build: str, day: str) -> dict[str, int]:
        """This machine's sightings."""
        known = sorted(races)
        query = (
            f"SELECT count(*) FROM sighting WHERE key_id IN ({', '.join('?' * len(known))}) AND build = ? AND day = ?"  # noqa: S608
            " AND state IN ('new', 'filed')"
        )
        return {self._host: int(self._db.execute(query, (*known, build, day)).fetchone()[0])}

    def _attempted(self, key_id: str, at: float) -> None:
        self._db.execute(
            "INSERT INTO issue (key_id, attempted) VALUES (?, ?)"
            " ON CONFLICT (key_id) DO UPDATE SET attempted = excluded.attempted",
            (key_id, at),
        )


def fresh() -> Position:
    """A log of which nothing was read."""
    return Position(
        entry=new_id(),
        path="",
        device=0,
        inode=0,
        size=UNSETTLED,
        changed=0,
        head_length=0,
        head="",
        tail_length=0,
        tail="",
        offset=0,
        line=0,
    )


def moved(position: Position, member: Member, offset: int, line: int, tail: bytes) -> Position:
    """The position further on.

    Args:
        position: So far.
        member: The file as it is now.
        offset: What is done with.
        line: Lines before that.
        tail: The bytes just before ``offset``.
    """
    head = member.head[:FINGERPRINT]
    return Position(
        entry=position.entry,
        path=str(member.path),
        device=member.device,
        inode=member.inode,
        size=member.size,
        changed=member.changed,
        head_length=len(head),
        head=digest(head),
        tail_length=len(tail),
        tail=digest(tail) if tail else "",
        offset=offset,
        line=line,
    )


def _sighting(row: sqlite3.Row) -> Sighting:
    values = {name: row[name] for name in Sighting.__struct_fields__}
    return Sighting(**values | {"report": msgspec.json.decode(values["report"], type=Report)})
