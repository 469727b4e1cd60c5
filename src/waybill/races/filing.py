"""Brings issues to what they should say, one race after the other; looks before it acts, so it may run again.

The forge is the memory that all machines share: an issue is found by its hidden marker, a day's comment by another.
What this side keeps is only a hint, and the time of its last attempt to open an issue: while an answer is lost and the
forge's list lags behind, nothing is opened twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from waybill.core.errors import UnavailableError, WaybillError
from waybill.races import rules, text
from waybill.races.model import Report
from waybill.races.ports import Issue, IssueTracker
from waybill.races.rules import Case, Create, Policy, Remark, Sighted
from waybill.races.text import Race, Seen

SETTLE = 120.0
"""Seconds within which a forge's list shows an issue that was opened."""
FOLLOWED = 10
"""Duplicates of duplicates that are followed."""


What = Literal["created", "regressed", "commented", "known", "waiting", "quarantined", "later", "failed"]


class Notes(Protocol):
    """What one side keeps; every call is durable when it returns."""

    def number(self, key_id: str) -> str:
        """The issue under which a race was filed last; empty when none is known."""
        ...

    def attempted(self, key_id: str) -> float | None:
        """Seconds since an issue was to be opened and no answer came; None when no answer is owed."""
        ...

    def attempt(self, key_id: str) -> None:
        """An issue is about to be opened."""
        ...

    def refused(self, key_id: str) -> None:
        """The forge answered that it opened none."""
        ...

    def belong(self, sighted: Sequence[str], race: str) -> None:
        """These reports count for this race."""
        ...

    def filed(self, sighted: Sequence[str], race: str, number: str) -> None:
        """These reports are in this issue."""
        ...

    def aside(self, sighted: Sequence[str], reason: str) -> None:
        """These reports need a person."""
        ...

    def counts(self, races: Iterable[str], build: str, day: str) -> dict[str, int]:
        """Host → sightings of these races on a day in a build, filed or not."""
        ...


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the new sightings of one race."""

    key_id: str
    title: str
    what: What
    number: str = ""
    url: str = ""
    reason: str = ""


class Filing:
    """One run over the sightings that are not filed.

    Args:
        tracker: The project's issues.
        policy: As set.
        notes: What this side keeps.
    """

    def __init__(self, tracker: IssueTracker, policy: Policy, notes: Notes) -> None:
        self._tracker = tracker
        self._policy = policy
        self._notes = notes
        self._issues: dict[str, Issue] = {}
        self._made = 0
        self._waiting: list[Report] = []

    def run(self, sighted: Iterable[Sighted]) -> Iterator[Outcome]:
        """File them; each outcome is durable when it is given.

        Raises:
            UnavailableError: The forge does not answer; what was given is done, the rest is for the next run.
        """
        self._list()
        self._join()
        targets: dict[str, list[Case]] = {}
        for case in rules.cases(sighted):
            race: Race | None = case.race
            reason = ""
            if not any(one.report.complete for one in case.sighted):
                race, reason = rules.doubtful(case, self._found())
            if race is None:
                self._notes.aside([one.id for one in case.sighted], reason)
                yield _outcome(case, "quarantined", reason=reason)
                continue
            named = msgspec.structs.replace(case, race=race)
            issue = self._standing(race.id)
            if issue is None:
                yield from self._told([named], None)
            else:
                self._issues[issue.number] = issue
                targets.setdefault(issue.number, []).append(named)
        for number, group in targets.items():
            yield from self._told(group, self._issues[number])
        self._summary()
        if self._made:
            self._list()
            self._join()

    def attach(self, one: Sighted, number: str) -> Outcome:
        """A person says that a report belongs to an issue; its race is the issue's from now on.

        Raises:
            WaybillError: There is no such issue, or the forge refuses.
        """
        self._list()
        issue = self._issues.get(number) or self._tracker.issue(number)
        if issue is None:
            raise WaybillError(f"there is no issue #{number}.", "Give the number of an issue of the same project.")
        case = Case(race=Race(id=one.report.key_id, key=one.report.key), sighted=(one,))
        if one.report.known and case.race.id not in {race.id for race in text.races(issue)}:
            body = text.with_alias(issue, case.race)
            self._tracker.change_body(number, body)
            issue = msgspec.structs.replace(issue, body=body)
        self._issues[number] = issue
        return self._file([case], issue)[0]

    def open(self, one: Sighted) -> Outcome:
        """A person says that a report is a race of its own."""
        self._list()
        case = Case(race=Race(id=one.report.key_id, key=one.report.key), sighted=(one,))
        return self._file([case], self._standing(case.race.id))[0]

    def _list(self) -> None:
        """What the forge lists, beside what was opened here and is not listed yet."""
        self._issues |= {issue.number: issue for issue in self._tracker.labelled(self._policy.label)}

    def _found(self) -> Mapping[str, Sequence[Issue]]:
        return rules.index(self._issues.values())

    def _join(self) -> None:
        """Close what machines that did not know of each other opened for one race."""
        for number, stays in rules.surplus(self._found()).items():
            current = self._tracker.issue(number)
            if current is not None and current.open:
                self._tracker.comment(number, f"Duplicate of #{stays}")
                self._tracker.set_open(number, wanted=False)
                current = self._tracker.issue(number)
            if current is not None:
                self._issues[number] = msgspec.structs.replace(current, duplicate_of=stays)

    def _standing(self, key_id: str) -> Issue | None:
        """The issue that stands for a race, through what persons declared to be duplicates."""
        issue = rules.chosen(self._found().get(key_id, ()))
        if issue is None and (number := self._notes.number(key_id)):
            issue = self._tracker.issue(number)
        passed: set[str] = set()
        while issue is not None and not issue.open and issue.number not in passed and len(passed) < FOLLOWED:
            passed.add(issue.number)
            target = issue.duplicate_of or text.duplicate_of(self._tracker.comments(issue.number))
            if not target or target in passed:
                break
            issue = self._issues.get(target) or self._tracker.issue(target) or issue
        return issue

    def _told(self, group: list[Case], issue: Issue | None) -> Iterator[Outcome]:
        try:
            yield from self._file(group, issue)
        except UnavailableError:
            raise
        except WaybillError as error:
            for case in group:
                yield _outcome(case, "failed", reason=error.reason)

    def _file(self, group: list[Case], issue: Issue | None) -> list[Outcome]:
        keys = {case.race.id for case in group} | {race.id for race in (text.races(issue) if issue else ())}
        for case in group:
            self._notes.belong([one.id for one in case.sighted], case.race.id)
        days = sorted({(one.day, one.build) for case in group for one in case.sighted})
        seen = [Seen(build=build, day=day, counts=self._notes.counts(keys, build, day)) for day, build in days]
        comments = self._tracker.comments(issue.number) if issue else ()
        planned = rules.steps(seen, max(case.last for case in group), issue, comments, self._policy)
        if any(isinstance(step, Create) for step in planned) and (held := self._held(group)):
            return held
        what: What = "commented" if planned else "known"
        for step in planned:
            if isinstance(step, Create):
                issue = self._create(group[0], step)
                what = "regressed" if step.before else "created"
            elif isinstance(step, Remark) and issue is not None:
                self._remark(issue, step, [one.report for case in group for one in case.sighted])
            elif issue is not None:
                self._tracker.add_label(issue.number, self._policy.regressed_label)
                self._tracker.set_open(issue.number, wanted=True)
                what = "regressed"
        number, url = (issue.number, issue.url) if issue else ("", "")
        for case in group:
            self._notes.filed([one.id for one in case.sighted], case.race.id, number)
        return [_outcome(case, what, number=number, url=url) for case in group]

    def _held(self, group: list[Case]) -> list[Outcome]:
        """Why no issue may be opened just now."""
        since = self._notes.attempted(group[0].race.id)
        if since is not None and since < SETTLE:
            return [_outcome(case, "later", reason="an answer was lost; the forge's list is awaited") for case in group]
        if self._made >= self._policy.cap:
            self._waiting += [case.report for case in group]
            return [
                _outcome(case, "waiting", reason=f"over {self._policy.cap} new issues in one run") for case in group
            ]
        return []

    def _create(self, case: Case, step: Create) -> Issue:
        labels = [self._policy.label, *([self._policy.regressed_label] if step.before else [])]
        at = case.sighted[0].at
        body = text.issue_body(case.report, case.race, step.seen, at, step.before)
        self._notes.attempt(case.race.id)
        try:
            issue = self._tracker.create(text.title(case.report), body, labels)
        except UnavailableError:
            raise  # nobody knows whether it was opened
        except WaybillError:
            self._notes.refused(case.race.id)
            raise
        self._issues[issue.number] = issue
        self._made += 1
        return issue

    def _remark(self, issue: Issue, step: Remark, reports: Sequence[Report]) -> None:
        body = text.comment_body(step.seen, reports, back=step.back)
        if step.comment:
            self._tracker.change_comment(issue.number, step.comment, body)
        else:
            self._tracker.comment(issue.number, body)

    def _summary(self) -> None:
        """One issue for what went over the cap, for as long as anything does."""
        waiting = self._waiting
        known = rules.chosen([issue for issue in self._issues.values() if text.is_summary(issue)])
        if not waiting:
            if known is not None and known.open:
                self._tracker.set_open(known.number, wanted=False)
            return
        body = text.summary_body(waiting)
        if known is None:
            self._tracker.create("Data races: more than are filed in one run", body, [self._policy.label])
            return
        if known.body != body:
            self._tracker.change_body(known.number, body)
        if not known.open:
            self._tracker.set_open(known.number, wanted=True)


def _outcome(
    case: Case,
    what: What,
    number: str = "",
    url: str = "",
    reason: str = "",
) -> Outcome:
    return Outcome(key_id=case.race.id, title=case.report.title, what=what, number=number, url=url, reason=reason)
