"""Thirty days of scans on three machines, with rotated logs, lost answers and SIGKILL: one issue for each race."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import time

import pytest

from support.races import Machine, fake_forge, race, seen_of
from waybill.races import filing, text

pytestmark = pytest.mark.flow
DAYS = 30
RACES = 14


def stamped(day, report):
    return "".join(f"2026-09-{day:02d}T04:05:06.7Z {line}\n" for line in report.splitlines())


def rotate(machine, draw):
    """What logrotate does over night, in one of its ways; the oldest are compressed."""
    logs = machine.logs
    for number in range(8, 0, -1):
        for end in ("", ".gz"):
            old = logs / f"app.log.{number}{end}"
            if old.exists():
                old.rename(logs / f"app.log.{number + 1}{end}")
    way = draw.choice(["rename", "copytruncate"])
    if way == "rename":
        (logs / "app.log").rename(logs / "app.log.1")
        (logs / "app.log").touch()
    else:
        shutil.copy2(logs / "app.log", logs / "app.log.1")
        os.truncate(logs / "app.log", 0)
    second = logs / "app.log.2"
    if second.exists():
        (logs / "app.log.2.gz").write_bytes(gzip.compress(second.read_bytes()))
        second.unlink()


def kill_in_the_middle(machine, forge, build, draw):
    """SIGKILL while the forge holds an answer back, or some moment after the start when it holds none."""
    forge.tell(
        "fault", what=draw.choice(["POST .*issues$", "POST .*notes$", "PUT .*notes", "GET .*issues$"]), how="hang"
    )
    before = len(forge.tell("state")["log"])
    started = machine.start(build)
    patience, requests = time.monotonic() + draw.uniform(0.2, 4.0), draw.randrange(6)
    while started.poll() is None and time.monotonic() < patience:
        if len(forge.tell("state")["log"]) > before + requests:
            break
        time.sleep(0.01)
    started.kill()
    started.wait()
    forge.tell("calm")


@pytest.mark.parametrize("kind", ["gitlab", "github"])
def test_thirty_days_over_three_machines_end_with_one_issue_for_each_race(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(filing, "SETTLE", 0.0)  # the list is awaited for two minutes otherwise
    draw = random.Random(f"thirty days of {kind}")
    written = {}
    with fake_forge() as forge:
        machines = [Machine(tmp_path / f"m{n}", f"test-0{n}", forge, forge=kind, cap=4) for n in (1, 2, 3)]
        for day in range(1, DAYS + 1):
            build = f"5.3.{day // 7}"
            for machine in machines:
                report = ""
                for number in draw.sample(range(min(RACES, 2 + day)), k=draw.randrange(4)):
                    report += stamped(day, race(number, shift=day, flip=draw.random() < 0.5))
                    key = (number, f"2026-09-{day:02d}", build, machine.name)
                    written[key] = written.get(key, 0) + 1
                    report += f"2026-09-{day:02d}T04:05:07.1Z level=info GET /healthz 200 {draw.random()}\n" * 20
                cut = draw.randrange(len(report)) if report and draw.random() < 0.3 else len(report)
                rotated = cut < len(report) and draw.random() < 0.5
                if rotated:  # by renaming: a line stays in one file
                    cut = report.rfind("\n", 0, cut) + 1
                machine.write(report[:cut])
                if cut < len(report):  # scanned, or even rotated, in the middle of a report
                    machine.scan(build)
                    if rotated:
                        (machine.logs / "app.log").rename(machine.logs / "app.log.0")
                machine.write(report[cut:])
                if draw.random() < 0.08:
                    kill_in_the_middle(machine, forge, build, draw)
                if draw.random() < 0.15:
                    how = draw.choice(["before", "after", "500"])
                    forge.tell("fault", what=draw.choice(["POST", "PUT|PATCH", "GET"]), how=how)
                machine.scan(build)
                forge.tell("calm")
                (machine.logs / "app.log.0").unlink(missing_ok=True)
            if day == 15:
                first, second = sorted(int(i["number"]) for i in forge.open if text_races(i))[:2]
                forge.tell("person", issue=second, comment=f"Duplicate of #{first}", open=False)
            for machine in machines:
                machine.scan(build)
                if draw.random() < 0.6:
                    rotate(machine, draw)
        for machine in [*machines, *machines]:
            assert machine.scan("5.3.4") == 0
        assert_one_issue_each(forge, written, first, second)


def text_races(issue):
    return [name for name in issue["title"].split() if "Lift" in name]


def assert_one_issue_each(forge, written, first, second):
    issues = {issue["number"]: issue for issue in forge.issues if text_races(issue)}
    by_race = {}
    for issue in issues.values():
        by_race.setdefault(int(text_races(issue)[0].rpartition("Lift")[2]), []).append(issue)
    seen = {number for number, *_ in written}
    assert set(by_race) == seen
    assert {number: len(found) for number, found in by_race.items()} == dict.fromkeys(seen, 1)
    assert [number for number, issue in issues.items() if not issue["open"]] == [second]
    joined = {first, second}
    for number, [issue] in by_race.items():
        if issue["number"] in joined:
            continue
        told = {
            (day, build, host): count
            for (build, day), counts in seen_of(issue).items()
            for host, count in counts.items()
            if count
        }
        assert told == {(d, b, h): count for (n, d, b, h), count in written.items() if n == number}
        days = [(s.build, s.day) for comment in issue["comments"] for s in text.seen(comment["body"])]
        assert len(days) == len(set(days))  # one comment at most for a day and build
