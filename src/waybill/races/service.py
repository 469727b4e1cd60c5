"""The server's side of races: takes reports, and files them, one run at a time over all servers.

Taking is one transaction: reports, event and work. Filing is a row of the outbox: whichever server leases it looks at
what is not filed; a lost answer, a kill or a forge that is down leave it for the next attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from waybill.core.clock import parse, stamp
from waybill.core.errors import InvalidInputError, UnavailableError, WaybillError
from waybill.events import outbox
from waybill.events.model import Again
from waybill.events.outbox import Work
from waybill.infra.db import Connection, Database
from waybill.infra.logs import log
from waybill.races import config, store
from waybill.races.events import RaceDecided, RaceFiled, RacesReported
from waybill.races.filing import SETTLE, Filing, Outcome
from waybill.races.frames import named
from waybill.races.model import MISSING, Report
from waybill.races.rules import Sighted
from waybill.wire.races import PostedRaces, RaceDecision, RaceInfo, SightedReport

HANDLER = "races.file"
SWEEP = "races.sweep"
KEY = "all"
"""The one row of work: two runs at once would open two issues for a race."""
EVERY = 3600.0
"""Seconds between runs for what went over the cap."""
T = TypeVar("T")


def take(connection: Connection, posted: PostedRaces, actor: str) -> int:
    """Keep what a machine sent; returns how many reports were new.

    Raises:
        InvalidInputError: One is no report; nothing is kept then.
    """
    new = sum(store.take(connection, _sighted(posted.host, one)) for one in posted.reports)
    if new:
        outbox.record(connection, RacesReported(host=posted.host, new=new), actor)
    return new


def decide(connection: Connection, start: str, decision: RaceDecision, actor: str) -> RaceInfo:
    """Keep what a person said about a report in quarantine.

    Raises:
        InvalidInputError: Nobody can do that.
    """
    told = store.info(connection, start)
    wanted = {"attach": decision.issue, "open": "new", "discard": "discard"}.get(decision.what, "")
    sound = wanted in ("new", "discard") or (wanted.isdecimal() and wanted.isascii() and len(wanted) < 10)
    if not sound or (decision.what == "attach") != wanted.isdecimal():
        raise InvalidInputError("a report is attached to an issue's number, opened, or discarded.")
    store.decide(connection, told.id, wanted)
    outbox.record(connection, RaceDecided(report=told.id, what=decision.what, issue=decision.issue), actor)
    return store.info(connection, told.id)


class Races:
    """Files what was reported.

    Args:
        db: The database.
        folder: The data folder; ``races.toml`` in it names the forge.
    """

    def __init__(self, db: Database, folder: Path) -> None:
        self._db = db
        self._file = folder / "races.toml"

    async def sweep(self, _work: Work) -> Again | None:
        """Handler: have what went over the cap, or was refused, tried again."""
        await self._db.write(lambda connection: outbox.wake(connection, HANDLER, KEY))
        return None

    async def file(self, work: Work) -> Again | None:
        """Handler: bring the issues to what the reports say."""
        settings = await asyncio.to_thread(config.load, self._file) if self._file.exists() else config.Config()
        waiting = await self._db.read(store.waiting)
        wanted = await self._db.read(store.wanted)
        if not settings.forge or not (waiting or wanted):
            return None
        notes = ServerNotes(self._db, work)

        def run() -> list[Outcome]:
            tracker = config.tracker(settings)
            made = []
            try:
                for one, number in wanted:
                    made += _decided(Filing(tracker, settings.policy, notes), notes, one, number)
                for outcome in Filing(tracker, settings.policy, notes).run(waiting):
                    notes.told(outcome)
                    made.append(outcome)
            finally:
                tracker.close()
            return made

        made = await asyncio.to_thread(run)
        return Again(SETTLE) if any(outcome.what == "later" for outcome in made) else None


class ServerNotes:
    """What filing keeps in the server's database; its calls come from a thread.

    Args:
        db: The database.
        work: The lease in whose name it is done.
    """

    def __init__(self, db: Database, work: Work) -> None:
        self._db = db
        self._work = work
        self._loop = asyncio.get_running_loop()

    def number(self, key_id: str) -> str:
        """Where a race was filed last."""
        return self._read(lambda connection: store.issue(connection, key_id))[0]

    def attempted(self, key_id: str) -> float | None:
        """Seconds since an issue was to be opened."""
        at = self._read(lambda connection: store.issue(connection, key_id))[1]
        return max(0.0, store.now() - at) if at else None

    def attempt(self, key_id: str) -> None:
        """An issue is about to be opened, if the lease is still ours."""
        self._write(lambda connection: store.put_issue(connection, key_id, attempted=store.now()))

    def refused(self, key_id: str) -> None:
        """None was opened."""
        self._write(lambda connection: store.put_issue(connection, key_id, attempted=0.0))

    def belong(self, sighted: Sequence[str], race: str) -> None:
        """These reports count for this race."""
        self._write(lambda connection: store.settle(connection, sighted, key_id=race))

    def filed(self, sighted: Sequence[str], race: str, number: str) -> None:
        """These reports are in this issue."""

        def apply(connection: Connection) -> None:
            store.settle(connection, sighted, state="filed", issue=number, reason="", wanted="")
            store.put_issue(connection, race, number=number, attempted=0.0)

        self._write(apply)

    def aside(self, sighted: Sequence[str], reason: str) -> None:
        """These reports need a person."""
        self._write(lambda connection: store.settle(connection, sighted, state="quarantine", reason=reason, wanted=""))

    def counts(self, races: Iterable[str], build: str, day: str) -> dict[str, int]:
        """Sightings on all machines."""
        return self._read(lambda connection: store.counts(connection, races, build, day))

    def told(self, outcome: Outcome) -> None:
        """Record what people should see."""
        if outcome.what in ("created", "regressed"):
            body = RaceFiled(
                key_id=outcome.key_id,
                title=outcome.title,
                issue=outcome.number,
                what=outcome.what,
                url=outcome.url,
            )
            self._write(lambda connection: outbox.record(connection, body, "waybill"))
        elif outcome.what == "failed":
            log.warning("race not filed", title=outcome.title, reason=outcome.reason)

    def _read(self, function: Callable[[Connection], T]) -> T:
        return self._wait(self._db.read(function))

    def _write(self, function: Callable[[Connection], T]) -> T:
        def apply(connection: Connection) -> T:
            outbox.check(connection, self._work)
            return function(connection)

        return self._wait(self._db.write(apply))

    def _wait(self, awaited: Awaitable[T]) -> T:
        async def run() -> T:
            return await awaited

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()


def _decided(filing: Filing, notes: ServerNotes, one: Sighted, number: str) -> list[Outcome]:
    try:
        outcome = filing.open(one) if number == "new" else filing.attach(one, number)
    except UnavailableError:
        raise
    except WaybillError as error:
        notes.aside([one.id], error.reason)
        return []
    notes.told(outcome)
    return [outcome]


def _sighted(host: str, one: SightedReport) -> Sighted:
    """A report as it is kept: what names it is computed here, from its stacks."""
    try:
        report: Report = msgspec.convert(one.report, Report)
        at = stamp(parse(one.at))
    except (msgspec.ValidationError, ValueError) as error:
        raise InvalidInputError(f"the report {one.id[:40]!r} is malformed: {error}") from error
    if not (one.id.isascii() and one.id.isalnum() and len(one.id) <= 64):
        raise InvalidInputError(f"{one.id[:80]!r} is no id of a report.")
    key, title, key_id = named(() if report.mixed else report.stacks, report.creation, report.language)
    complete = report.complete and MISSING not in key and not report.mixed
    changes: dict[str, Any] = {"key": key, "title": title, "key_id": key_id, "complete": complete}
    report = msgspec.structs.replace(report, **changes)
    return Sighted(id=one.id, host=host, build=one.build[:200], day=at[:10], at=at, report=report)
