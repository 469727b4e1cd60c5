"""What is to be done about a race, decided without asking anybody: from its sightings and the issue as it stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from waybill.core.clock import parse
from waybill.races import text
from waybill.races.frames import same_race
from waybill.races.model import Report
from waybill.races.ports import Comment, Issue
from waybill.races.text import Race, Seen


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What a team may set.

    Attributes:
        label: Of every issue about a race.
        regressed: When a closed race is seen again, ``reopen`` its issue, or open a ``new`` one that names it.
        regressed_label: Added then.
        cap: New issues of one run.
    """

    label: str = "Race conditions"
    regressed: Literal["reopen", "new"] = "reopen"
    regressed_label: str = "Regressed"
    cap: int = 20


class Sighted(msgspec.Struct, frozen=True, kw_only=True):
    """One report, wherever it was read."""

    id: str
    host: str
    build: str
    day: str
    at: str
    report: Report


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """The sightings of one race that are not filed yet, the first one first."""

    race: Race
    sighted: tuple[Sighted, ...]

    @property
    def report(self) -> Report:
        """The one to show."""
        return next((one.report for one in self.sighted if one.report.complete), self.sighted[0].report)

    @property
    def last(self) -> str:
        """When the race was seen last."""
        return max(one.at for one in self.sighted)


class Create(msgspec.Struct, frozen=True, kw_only=True):
    """Open an issue; ``before`` names a closed one of the same race."""

    seen: Seen
    before: str = ""


class Remark(msgspec.Struct, frozen=True, kw_only=True):
    """Comment on a day and build; ``comment`` is the one that exists."""

    seen: Seen
    comment: str = ""
    back: bool = False


class Reopen(msgspec.Struct, frozen=True, kw_only=True):
    """Open the issue again, and mark it."""


Step = Create | Remark | Reopen


def cases(sighted: Iterable[Sighted]) -> list[Case]:
    """Sightings by race, those that were seen first first."""
    groups: dict[str, list[Sighted]] = {}
    for one in sorted(sighted, key=lambda one: (one.at, one.id)):
        groups.setdefault(one.report.key_id, []).append(one)
    return [
        Case(race=Race(id=key_id, key=group[0].report.key), sighted=tuple(group)) for key_id, group in groups.items()
    ]


def index(issues: Iterable[Issue]) -> dict[str, list[Issue]]:
    """Race → the issues that stand for it."""
    found: dict[str, list[Issue]] = {}
    for issue in issues:
        for race in text.races(issue):
            found.setdefault(race.id, []).append(issue)
    return found


def chosen(holders: Sequence[Issue]) -> Issue | None:
    """The issue that counts: the oldest open one, else the newest closed one."""
    opened = [issue for issue in holders if issue.open]
    if opened:
        return min(opened, key=_number)
    return max(holders, key=_number, default=None)


def surplus(found: Mapping[str, Sequence[Issue]]) -> dict[str, str]:
    """Open issues that machines opened without knowing of each other: number → the one that stays."""
    doomed: dict[str, str] = {}
    for holders in found.values():
        stays = chosen(holders)
        for issue in holders:
            if stays is not None and issue.open and issue.number != stays.number:
                doomed[issue.number] = stays.number
    return doomed


def doubtful(case: Case, found: Mapping[str, Sequence[Issue]]) -> tuple[Race | None, str]:
    """The race that an incomplete report is of, or None and why a person has to look."""
    report = case.report
    if report.mixed:
        return None, "lines of two reports are mixed in it"
    if not report.known:
        return None, "no stack of it is left"
    if case.race.id in found:
        return case.race, ""
    if len(report.known) == 2:
        return None, "it was cut short, and no issue is about this race yet"
    fitting = {
        race.id: race
        for holders in found.values()
        for issue in holders
        if issue.open
        for race in text.races(issue)
        if same_race(report, race.key)
    }
    if len(fitting) == 1:
        return next(iter(fitting.values())), ""
    why = "several open issues have" if fitting else "no open issue has"
    return None, f"one side is missing, and {why} the other"


def steps(
    seen: Iterable[Seen], last: str, issue: Issue | None, comments: Sequence[Comment], policy: Policy
) -> list[Step]:
    """What is to be done.

    Args:
        seen: By day and build, with what every host counted so far, oldest first.
        last: When the race was seen last.
        issue: The one that stands for the race.
        comments: On it.
        policy: As set.
    """
    days = list(seen)
    if issue is None:
        return [Create(seen=days[0]), *(Remark(seen=day) for day in days[1:])]
    back = not issue.open and _after(last, issue.closed)
    if back and policy.regressed == "new":
        return [Create(seen=days[-1], before=issue.number)]
    noted = _noted(comments)
    body = {(day.build, day.day): day for day in text.seen(issue.body)}
    made: list[Step] = []
    for day in days:
        key = (day.build, day.day)
        comment, told = noted.get(key, ("", body.get(key)))
        whole = day.joined(told) if told else day
        if whole != told:
            made.append(Remark(seen=whole, comment=comment, back=back and day is days[-1]))
    return [*made, Reopen()] if back else made


def _noted(comments: Iterable[Comment]) -> dict[tuple[str, str], tuple[str, Seen | None]]:
    """(build, day) → the comment about it; the first one counts."""
    noted: dict[tuple[str, str], tuple[str, Seen | None]] = {}
    for comment in comments:
        for day in text.seen(comment.body):
            noted.setdefault((day.build, day.day), (comment.id, day))
    return noted


def _after(last: str, closed: str) -> bool:
    """Whether a race was seen after its issue was closed: logs are read late, and tell of the time before a fix."""
    try:
        return not closed or parse(last) > parse(closed)
    except ValueError:
        return True


def _number(issue: Issue) -> int:
    return int(issue.number)
