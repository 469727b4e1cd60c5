"""Every recorded report gives the key that its table expects, where the folder of recordings is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.need import elsewhere
from waybill.races.model import Report
from waybill.races.scan import Scanner, Tape

CHECKOUT = Path(__file__).parents[2]


def folder():
    shared = Path(os.environ.get("WAYBILL_SHARED") or CHECKOUT.parent / "shared")
    return shared / "data" / "race-logs"


def table():
    rows = {}
    readme = folder() / "README.md"
    for line in readme.read_text().splitlines() if readme.exists() else ():
        cells = [cell.strip() for cell in line.strip(" |").split(" | ")]
        if len(cells) >= 3 and (folder() / cells[0]).is_file():
            rows[cells[0]] = cells
    return rows


ROWS = table()


def reports(*names):
    scanner, found = Scanner(), []
    for name in names:
        with (folder() / name).open("rb") as file:
            found += scanner.read(Tape(file), name, name)
    return [one.report for one in [*found, *scanner.rest(final=True)]]


def need_folder():
    if not ROWS:
        elsewhere("the recordings of data races (WAYBILL_SHARED names the folder that holds data/race-logs)")


def test_the_recordings_are_there_or_it_is_said():
    need_folder()
    assert len(ROWS) >= 80


@pytest.mark.parametrize("name", [name for name, cells in ROWS.items() if cells[2].isdecimal()])
def test_a_recording_has_its_number_of_reports_and_its_key(name):
    _, _, number, first, key = ROWS[name]
    found = reports(name)
    assert len(found) == int(number)
    assert found[0].key == tuple(side.strip("`") for side in key.split(" / "))
    assert first  # the talk's title, which is not used


@pytest.mark.parametrize("name", ["negative-issue-golang-go-43008.log", "negative-mentions-only.log"])
def test_what_only_mentions_races_files_nothing(name):
    need_folder()
    assert reports(name) == []


def test_one_race_in_every_order_build_and_form_is_one_race():
    need_folder()
    same = [name for name in ROWS if name.startswith("lab-flip-")]
    same += [name for name, cells in ROWS.items() if "same key as run1" in cells[1]]
    assert len(same) >= 15
    assert len({report.key_id for name in same for report in reports(name)}) == 1
    [kubernetes, other] = [reports(f"real-goreal-kubernetes-{number}.log")[0] for number in (81148, 73022)]
    assert kubernetes.key_id != other.key_id


def test_interleaved_services_are_told_apart():
    need_folder()
    found = reports("fmt-compose-two-services-interleaved.log")
    assert [report.complete for report in found] == [True, True, True]
    alone = {report.key_id for name in ("lab-flip-run1.log", "lab-atomic-mix.log") for report in reports(name)}
    assert {report.key_id for report in found} == alone


def test_processes_mixed_without_a_prefix_are_never_joined():
    need_folder()
    found = reports("fmt-two-processes-no-prefix.log")
    assert [(report.mixed, report.complete, report.known) for report in found[:2]] == [(True, False, ())] * 2
    [other] = found[2:]
    assert other.key == ("main.(*Stats).Store", "sync/atomic.LoadInt64")


def test_a_report_that_rotation_cut_is_whole_again():
    need_folder()
    found = reports("fmt-rotated.log.1", "fmt-rotated.log")
    expected = reports("lab-closures-wrappers.log")
    assert [(report.key_id, report.complete) for report in found] == [(report.key_id, True) for report in expected]
    assert len(found) == 2


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("real-issue-mkevac-debugcharts-19.log", ()),
        ("real-issue-golang-go-58634.log", ("github.com/vearutop/teststat_test.TestThatIsRacy.func1",)),
    ],
)
def test_a_damaged_report_is_kept_for_a_person(name, known):
    need_folder()
    [report] = reports(name)
    assert isinstance(report, Report)
    assert (report.complete, report.known) == (False, known)


def test_the_ghost_of_an_import_path_does_not_make_another_race():
    need_folder()
    [report] = reports("real-goreal-etcd-8194.log")
    assert report.key[1].startswith("_/")
    text = report.text.replace("_/go/src/", "")
    again = list(Scanner().read(Tape(_Bytes(f"{text}\n==================\n".encode())), "x", "x"))
    assert again[0].report.key_id == report.key_id


class _Bytes:
    def __init__(self, data):
        self.data = data

    def read(self, size):
        taken, self.data = self.data[:size], self.data[size:]
        return taken
