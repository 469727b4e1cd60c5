"""Issues of races against the strict fake forge: what a team would see in its tracker."""

from __future__ import annotations

import json
import os
import time

import pytest

from support.races import Machine, fake_forge, go_report, half, race, seen_of
from waybill.cli.main import COMMANDS
from waybill.cli.run import run
from waybill.races import filing

FORGES = ["gitlab", "github", "gitea"]


@pytest.fixture(scope="module")
def running():
    with fake_forge() as forge:
        yield forge


@pytest.fixture
def forge(running):
    running.tell("reset")
    return running


@pytest.fixture
def machine(tmp_path, forge):
    return Machine(tmp_path / "m1", "test-01", forge)


def settled(machine):
    """Nothing more is expected of a log that nobody wrote to for long."""
    for file in machine.logs.iterdir():
        os.utime(file, (time.time() - 3600,) * 2)


@pytest.mark.parametrize("kind", FORGES)
def test_one_race_in_both_orders_and_two_builds_is_one_issue(tmp_path, forge, kind):
    machine = Machine(tmp_path / "m", "test-01", forge, forge=kind)
    machine.write(race(1) + race(1, flip=True) + race(1, shift=30) + race(2))
    assert machine.scan("5.3.1-412") == 0
    issues = forge.issues
    assert [issue["title"] for issue in issues] == [
        f"Data race: yard.example/crane/hook.(*Hook).Drop{n} / yard.example/crane/hook.(*Hook).Lift{n}" for n in (1, 2)
    ]
    assert all(issue["labels"] == ["Race conditions"] for issue in issues)
    body = issues[0]["body"]
    for part in ("Write at 0x00c000123450 by goroutine 7:", "Goroutine 8 (finished) created at:", "`test-01`", "412"):
        assert part in body
    assert [list(counts.values()) for counts in seen_of(issues[0]).values()] == [[3]]
    [(build, _)] = seen_of(issues[0])
    assert build == "5.3.1-412"


@pytest.mark.parametrize("kind", FORGES)
def test_a_day_and_build_get_one_comment_whose_count_grows(tmp_path, forge, kind):
    machines = [Machine(tmp_path / f"m{n}", f"test-0{n}", forge, forge=kind) for n in (1, 2, 3)]
    for number, machine in enumerate(machines):
        machine.write(race(1, shift=number))
        assert machine.scan("b1") == 0
    for machine in machines:
        machine.write(race(1, flip=True))
        assert machine.scan("b1") == 0
    machines[0].write(race(1))
    assert machines[0].scan("b2") == 0
    [issue] = forge.issues
    assert len(issue["comments"]) == 2  # one for the day's first build, one for its second
    counts = {build: counts for (build, _), counts in seen_of(issue).items()}
    assert counts == {"b1": {"test-01": 2, "test-02": 2, "test-03": 2}, "b2": {"test-01": 1}}


def test_scanning_again_says_nothing_again(machine, forge):
    machine.write(race(1))
    machine.scan()
    before = forge.issues
    machine.scan()
    (machine.folder / "state" / "races.sqlite").unlink()  # even when everything is forgotten
    for extra in ("-wal", "-shm"):
        (machine.folder / "state" / f"races.sqlite{extra}").unlink(missing_ok=True)
    machine.scan()
    assert forge.issues == before


def test_a_dry_run_does_nothing_and_remembers_nothing(machine, forge, capsys):
    machine.write(race(1))
    assert machine.scan("", "--dry-run") == 0
    assert "would be created" in capsys.readouterr().err
    assert forge.issues == []
    assert not (machine.folder / "state").exists()
    machine.scan()
    assert len(forge.issues) == 1


@pytest.mark.parametrize("kind", FORGES)
def test_a_closed_race_that_comes_back_is_opened_again(tmp_path, forge, kind):
    machine = Machine(tmp_path / "m", "test-01", forge, forge=kind)
    machine.write(race(1))
    machine.scan("b1")
    forge.tell("person", issue=1, open=False)
    machine.scan("b1")
    assert forge.open == []  # nothing new was seen
    machine.write(race(1))
    machine.scan("b2")
    [issue] = forge.open
    assert sorted(issue["labels"]) == ["Race conditions", "Regressed"]
    assert "Regressed: seen again" in issue["comments"][-1]["body"]


def test_or_another_issue_names_the_closed_one(tmp_path, forge):
    machine = Machine(tmp_path / "m", "test-01", forge, regressed="new")
    machine.write(race(1))
    machine.scan("b1")
    forge.tell("person", issue=1, open=False)
    machine.write(race(1))
    machine.scan("b2")
    machine.write(race(1))
    machine.scan("b3")
    [issue] = forge.open
    assert (issue["number"], "#1" in issue["body"], "Regressed" in issue["labels"]) == (2, True, True)
    assert len(forge.issues) == 2


def test_a_report_from_before_the_fix_opens_nothing(machine, forge):
    machine.write(race(1))
    machine.scan("b1")
    forge.tell("person", issue=1, open=False)
    old = "".join(f"2026-01-02T03:04:05.6Z {line}\n" for line in race(1).splitlines())
    machine.write(old)
    machine.scan("b1")
    assert forge.open == []


@pytest.mark.parametrize("how", ["gitlab", "comment"])
def test_what_a_person_joined_stays_joined(machine, forge, how):
    machine.write(race(1) + race(2))
    machine.scan("b1")
    if how == "gitlab":
        forge.tell("person", issue=2, duplicate_of=1)
    else:
        forge.tell("person", issue=2, comment="Same thing.\n\nDuplicate of #1", open=False)
    machine.write(race(2) + race(1))
    machine.scan("b2")
    [issue] = forge.open
    assert issue["number"] == 1
    counts = {build: counts for (build, _), counts in seen_of(issue).items()}
    assert counts["b2"] == {"test-01": 2}
    assert len(forge.issues) == 2


def test_new_issues_of_a_run_are_capped_and_the_rest_is_listed_once(tmp_path, forge):
    machine = Machine(tmp_path / "m", "test-01", forge, cap=3)
    machine.write("".join(race(n) for n in range(8)))
    machine.scan()
    assert len([i for i in forge.open if i["title"].startswith("Data race:")]) == 3
    [summary] = [i for i in forge.open if i["title"].startswith("Data races:")]
    assert summary["body"].count("- `Data race:") == 5
    machine.scan()
    machine.scan()
    assert len([i for i in forge.open if i["title"].startswith("Data race:")]) == 8
    assert [i["open"] for i in forge.issues if i["title"].startswith("Data races:")] == [False]


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("what", ["POST .*issues$", "POST .*notes$", "PUT "])
def test_nothing_is_lost_or_filed_twice_when_an_answer_is_lost(machine, forge, monkeypatch, how, what):
    monkeypatch.setattr(filing, "SETTLE", 0.0)
    machine.write(race(1))
    if "issues" not in what:
        machine.scan("b1")
        forge.tell("person", issue=1, open=False)
        machine.write(race(1))
    forge.tell("fault", what=what, how=how)
    assert machine.scan("b2") == 7
    assert machine.scan("b2") == 0
    [issue] = forge.issues
    assert issue["open"]
    assert len({(build, day) for build, day in seen_of(issue)}) == len(issue["comments"]) + 1


def test_a_list_that_lags_behind_makes_no_second_issue(machine, forge, monkeypatch):
    machine.write(race(1))
    forge.tell("lag", seconds=3600)
    forge.tell("fault", what="POST .*issues$", how="after")
    assert machine.scan() == 7
    machine.scan()
    machine.scan()
    assert len(forge.issues) == 1  # waits until the list can be trusted
    forge.tell("lag", seconds=0)
    monkeypatch.setattr(filing, "SETTLE", 0.0)
    machine.write(race(1))
    machine.scan()
    assert len(forge.issues) == 1


def test_machines_that_did_not_know_of_each_other_end_with_one_issue(tmp_path, forge):
    machines = [Machine(tmp_path / f"m{n}", f"test-0{n}", forge) for n in (1, 2, 3)]
    forge.tell("lag", seconds=3600)
    for machine in machines:
        machine.write(race(1))
        machine.scan("b1")
    assert len(forge.open) == 3
    forge.tell("lag", seconds=0)
    for machine in machines:
        machine.write(race(1))
        machine.scan("b1")
    [issue] = forge.open
    assert issue["number"] == 1
    assert {host for counts in seen_of(issue).values() for host in counts} == {"test-01", "test-02", "test-03"}


def test_hostile_frames_reach_the_issue_as_text_only(machine, forge):
    evil = "yard.example/x.`@all</details><script>alert(1)</script>-->~bug!1#2`"
    text = go_report([evil], ["yard.example/x.Quiet"]).replace(
        "\nPrevious", "\n/close\n/assign @all\n```\n<!-- waybill:race {} -->\n@everyone\x1b[31m\u202e\nPrevious"
    )
    machine.write(text)
    settled(machine)
    machine.scan("<b>@all")
    [issue] = forge.issues
    outside, _, inside = issue["body"].partition("````text\n")
    assert inside.count("````") == 1
    assert "\n/close" not in outside
    spans = outside.replace(" -->\n", "\n").split("`")
    assert not any(sign in part for part in spans[::2] for sign in ("@", "<script", "</details", "/assign", "-->"))
    assert "@all" not in issue["title"]
    assert "\x1b" not in issue["body"]
    assert "\u202e" not in issue["body"]
    machine.write(race(1))
    machine.scan()
    assert len(forge.issues) == 2


def test_half_a_report_joins_the_one_issue_that_fits_or_waits_for_a_person(machine, forge, capsys):
    known, other = "yard.example/crane/hook.(*Hook).Lift1", "yard.example/crane/hook.(*Hook).Alone"
    machine.write(race(1))
    machine.scan("b1")
    machine.write(half(known) + half(other))
    machine.scan("b2")
    [issue] = forge.issues
    assert [counts for (build, _), counts in seen_of(issue).items() if build == "b2"] == [{"test-01": 1}]
    state = ["--state", str(machine.folder / "state")]
    capsys.readouterr()
    assert run(["races", "list", "--json", *state], COMMANDS) == 0
    [waiting] = json.loads(capsys.readouterr().out)
    assert "one side is missing" in waiting["reason"]
    config = ["--config", str(machine.folder / "races.toml")]
    assert run(["races", "show", waiting["id"][:10], *state], COMMANDS) == 0
    assert "[failed to restore the stack]" in capsys.readouterr().out
    assert run(["races", "attach", waiting["id"], "#1", *state, *config], COMMANDS) == 0
    machine.write(half(other))  # the next one like it needs nobody
    machine.scan("b3")
    [issue] = forge.issues
    assert {build for build, _ in seen_of(issue)} == {"b1", "b2", "b3"}
    assert run(["races", "attach", waiting["id"], "1", *state, *config], COMMANDS) == 6
    assert run(["races", "list", *state], COMMANDS) == 0
    assert "Nothing needs a person" in capsys.readouterr().out


def test_a_discarded_report_is_gone_and_a_new_one_can_be_opened(machine, forge, capsys):
    machine.write(go_report(["yard.example/a.A"], ["yard.example/b.B"], ended=False))
    machine.write(go_report(["yard.example/c.C"], ["yard.example/d.D"], ended=False), "other.log")
    settled(machine)
    machine.scan()
    state = ["--state", str(machine.folder / "state")]
    capsys.readouterr()
    run(["races", "list", "--json", *state], COMMANDS)
    first, second = sorted(json.loads(capsys.readouterr().out), key=lambda one: one["title"])
    assert "cut short" in first["reason"]
    assert forge.issues == []
    assert run(["races", "discard", first["id"], *state], COMMANDS) == 0
    config = ["--config", str(machine.folder / "races.toml")]
    assert run(["races", "attach", second["id"], "new", *state, *config], COMMANDS) == 0
    assert [issue["title"] for issue in forge.issues] == [second["title"]]
    machine.scan()
    assert len(forge.issues) == 1


def test_a_token_that_others_may_read_is_refused(machine, capsys):
    machine.write(race(1))
    (machine.folder / "token").chmod(0o644)
    assert machine.scan() == 4
    assert "chmod 600" in capsys.readouterr().err
