"""What issues and comments say, and how they are recognised again.

A marker is an HTML comment with JSON, before the first code block. What a program wrote stands in code, where no forge
reads mentions, quick actions or HTML; a fence is longer than any inside it. Whatever could end a code span or a
comment early is taken out of names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from waybill.races.model import Report
from waybill.races.ports import Comment, Issue

M = TypeVar("M", bound=msgspec.Struct)
BODY = 50_000
"""Characters of a report that an issue holds; GitHub takes 65,536 in all."""
RACE = re.compile(r"^<!-- waybill:race (\{.*\}) -->$")
SEEN = re.compile(r"^<!-- waybill:race-seen (\{.*\}) -->$")
SUMMARY = "<!-- waybill:race-summary -->"
DUPLICATE = re.compile(
    r"(?im)^(?:[*_]{0,2})(?:/duplicate|marked this issue as a duplicate of|duplicate of) #(\d{1,9})\b"
)
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


class Race(msgspec.Struct, frozen=True, kw_only=True):
    """What the marker of an issue says; an issue may have several, when a person joined races."""

    id: str
    key: tuple[str, str]


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """How often a race was seen on one day in one build, by host."""

    build: str
    day: str
    counts: dict[str, int]

    def joined(self, other: Seen) -> Seen:
        """Both; what a host says anew counts instead of what it said, unless it is less."""
        hosts = sorted(self.counts.keys() | other.counts.keys())
        counts = {host: max(self.counts.get(host, 0), other.counts.get(host, 0)) for host in hosts}
        return Seen(build=self.build, day=self.day, counts=counts)


def plain(text: str, limit: int = 200) -> str:
    """One line without control and direction characters."""
    return UNSAFE.sub("", text)[:limit]


def code(text: str) -> str:
    """A code span, in which nothing is read as anything else."""
    kept = plain(text).replace("`", "'").strip()
    return f"`{kept}`" if kept else "(none)"


def fenced(text: str) -> str:
    """A code block, cut to what forges take."""
    kept = "\n".join(UNSAFE.sub("", line.replace("\t", "    ")) for line in text.split("\n"))
    if len(kept) > BODY:
        kept = f"{kept[: BODY // 2]}\n[… {len(kept) - BODY} characters left out …]\n{kept[-BODY // 2 :]}"
    longest = max((len(run) for run in re.findall(r"`+", kept)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{kept}\n{fence}"


def title(report: Report) -> str:
    """The title, in which nothing mentions anybody or anything: a word joiner follows each character that could."""
    return re.sub(r"([@#!~%$&^\\<])(?=[\w/\\!])", "\\1\u2060", plain(report.title, 250))


def hidden(kind: str, value: msgspec.Struct) -> str:
    """A marker. Nothing in it can end it, or mean anything to a forge: all but plain characters are escaped."""
    text = json.dumps(msgspec.to_builtins(value), separators=(",", ":"))
    text = re.sub(r"[^A-Za-z0-9 _.,:/\"{}\[\]()*\\]", lambda found: f"\\u{ord(found[0]):04x}", text)
    return f"<!-- waybill:{kind} {text} -->"


def issue_body(report: Report, race: Race, seen: Seen, at: str, before: str = "") -> str:
    """The text of a new issue.

    Args:
        report: The one to show.
        race: What it is an issue of.
        seen: Where, and how often.
        at: When first.
        before: The number of the closed issue of the same race, for one that came back.
    """
    lines = [hidden("race", race), hidden("race-seen", seen), ""]
    if before:
        lines += [f"Regression: this race was closed as #{before} and was seen again.", ""]
    lines += [
        "A data race: two accesses to the same memory, at least one of them a write, without synchronisation.",
        "",
        f"- between {code(report.key[0])}",
        f"- and {code(report.key[1])}",
        "",
        *_table(seen, at, report),
        "",
        fenced(report.text),
        "",
        "Written by `waybill races`. To join two races, close one and comment on it: `Duplicate of #…`.",
    ]
    return "\n".join(lines)


def comment_body(seen: Seen, reports: Iterable[Report], *, back: bool = False) -> str:
    """The comment for one day and build."""
    lines = [hidden("race-seen", seen), ""]
    if back:
        lines += ["Regressed: seen again after this issue was closed.", ""]
    total = sum(seen.counts.values())
    lines += [f"Seen {total} {'time' if total == 1 else 'times'} on {plain(seen.day)}, build {code(seen.build)}:", ""]
    lines += [f"- {code(host)}: {count}" for host, count in sorted(seen.counts.items())[:200]]
    shown = next(iter(reports), None)
    if shown is not None:
        lines += ["", "<details><summary>One of the reports</summary>", "", fenced(shown.text), "", "</details>"]
    return "\n".join(lines)


def summary_body(waiting: Iterable[Report]) -> str:
    """The one issue for what went over the cap."""
    found = list(waiting)
    lines = [
        SUMMARY,
        "",
        f"{len(found)} more data races were found than are filed in one run. The next runs file them:",
    ]
    lines += ["", *(f"- {code(report.title)}" for report in found[:300])]
    return "\n".join(lines)


def races(issue: Issue) -> list[Race]:
    """The races that an issue stands for."""
    return _markers(issue.body, RACE, Race)


def seen(text: str) -> list[Seen]:
    """What the markers of an issue or a comment say."""
    return _markers(text, SEEN, Seen)


def is_summary(issue: Issue) -> bool:
    """Whether it is the issue for what went over the cap."""
    return issue.body.lstrip().startswith(SUMMARY)


def duplicate_of(comments: Iterable[Comment]) -> str:
    """The number that a person last named in ``Duplicate of #N``; empty when nobody did."""
    named = ""
    for comment in comments:
        if comment.trusted and not SEEN.match(comment.body.partition("\n")[0]):
            named = (DUPLICATE.findall(comment.body) or [named])[-1]
    return named


def with_alias(issue: Issue, race: Race) -> str:
    """The text of an issue that stands for one more race."""
    return f"{hidden('race', race)}\n{issue.body}"


def _markers(body: str, pattern: re.Pattern[str], kind: type[M]) -> list[M]:
    found: list[M] = []
    for line in body.replace("\r\n", "\n").split("\n"):
        if line.startswith("```"):
            break
        if match := pattern.match(line.strip()):
            try:
                found.append(msgspec.json.decode(match[1], type=kind))
            except msgspec.DecodeError:
                continue
    return found


def _table(seen: Seen, at: str, report: Report) -> list[str]:
    hosts = ", ".join(code(host) for host in sorted(seen.counts)[:50])
    rows = [
        ("first seen", plain(at)),
        ("on", hosts),
        ("build", code(seen.build)),
        ("in", f"{code(report.file)}, line {report.line}"),
        ("count", str(sum(seen.counts.values()))),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value.replace('|', chr(0x2502))} |" for name, value in rows)]
