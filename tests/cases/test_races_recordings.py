"""Recordings of this repository, written by hand to the grammar of the detectors: what each is, and which are one race."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from waybill.races.scan import Scanner, Tape

FOLDER = Path(__file__).parent / "races"
MOOR = "harbour.example/pilot/berth.(*Berth).Moor"
RELEASE = "harbour.example/pilot/berth.(*Berth).Release"
CASES = [
    # file, first and second side, complete
    ("order-one.log", MOOR, RELEASE, True),
    ("order-two.log", MOOR, RELEASE, True),
    ("trimpath.log", MOOR, RELEASE, True),
    ("strip-prefix.log", MOOR, RELEASE, True),
    ("after-edit.log", MOOR, RELEASE, True),
    ("generics.log", "harbour.example/pilot/queue.(*Ring).Push", "harbour.example/pilot/queue.Drain", True),
    ("vendored.log", "gopkg.in/buoy.v3.(*Light).Blink", "gopkg.in/buoy.v3.New.func1", True),
    ("old-go.log", "_/srv/ci/pilot.func3", "main.main", True),
    ("lost-caller.log", "main.(*Gauge).Set", "sync/atomic.LoadInt32", True),
    ("lost-stack.log", "?", MOOR, False),
    ("cut.log", "?", MOOR, False),
    ("tsan.log", "harbour::operator<<", "memcpy", True),
]


def scan(data, name="x"):
    scanner = Scanner()
    found = [*scanner.read(Tape(io.BytesIO(data)), name, name), *scanner.rest(final=True)]
    return [one.report for one in found]


def recording(name):
    return (FOLDER / name).read_bytes()


@pytest.mark.parametrize(("name", "first", "second", "complete"), CASES)
def test_a_recording_has_its_key(name, first, second, complete):
    [report] = scan(recording(name))
    assert (report.key, report.complete, report.line) == ((first, second), complete, 2)
    assert report.title == f"Data race: {first} / {second}"
    assert report.key_id.startswith("v1:")


def test_order_build_paths_and_lines_do_not_count():
    same = ("order-one.log", "order-two.log", "trimpath.log", "strip-prefix.log", "after-edit.log")
    assert len({scan(recording(name))[0].key_id for name in same}) == 1


def test_the_library_function_of_a_lost_caller_does_not_join_two_races():
    one, two = (scan(recording(name))[0] for name in ("lost-caller.log", "lost-caller-elsewhere.log"))
    assert one.key == two.key
    assert one.key_id != two.key_id


def test_a_mention_is_no_report():
    assert scan(recording("mention.log")) == []


def wrap(form):
    made = []
    for number, line in enumerate(recording("order-one.log").decode().splitlines()):
        second = f"{number:02d}"
        made.append(form(second, line))
    return "\n".join(made).encode() + b"\n"


def text(value):
    import json

    return json.dumps(value)


FORMS = {
    "plain": lambda s, line: line,
    "crlf": lambda s, line: f"{line}\r",
    "bom": lambda s, line: line,
    "colours": lambda s, line: f"\x1b[1;31m{line}\x1b[0m",
    "journald short": lambda s, line: f"Nov 20 09:15:{s} test-07 pilotd[4121]: {line}",
    "journald precise": lambda s, line: f"Nov 20 09:15:{s}.123456 test-07 pilotd[4121]: {line}",
    "journald iso": lambda s, line: f"2026-11-20T09:15:{s}+0100 test-07 pilotd[4121]: {line}",
    "journald json": lambda s, line: text({"__REALTIME_TIMESTAMP": "1795166102123456", "_PID": "1", "MESSAGE": line}),
    "journald json bytes": lambda s, line: text(
        {"_PID": "1", "MESSAGE": list(line.encode()) if "()" in line else line}
    ),
    "docker": lambda s, line: text({"log": line + "\n", "stream": "stderr", "time": "2026-11-20T09:15:02.123456789Z"}),
    "cri": lambda s, line: f"2026-11-20T09:15:{s}.123456789Z stderr F {line}",
    "cri partial": lambda s, line: "\n".join(
        f"2026-11-20T09:15:{s}.123456789+01:00 stderr {tag} {part}"
        for tag, part in ((("P", line[:9]), ("P", line[9:20]), ("F", line[20:])) if "()" in line else (("F", line),))
    ),
    "github": lambda s, line: f"2026-11-20T09:15:{s}.1234567Z {line}",
    "gh run view": lambda s, line: f"build\tTest\t2026-11-20T09:15:{s}.1234567Z {line}",
    "gitlab": lambda s, line: f"2026-11-20T09:15:{s}.123456Z 01E {line}",
    "gitlab section": lambda s, line: f"section_start:1795166102:step\r\x1b[0K{line}",
    "klog": lambda s, line: f"E1120 09:15:{s}.100000    4121 stderr.go:31] {line}",
    "compose": lambda s, line: f"api-1      | {line}",
    "compose with times": lambda s, line: f"api-1  | 2026-11-20T09:15:{s}.123456789Z {line}",
    "go test": lambda s, line: text(
        {"Time": "2026-11-20T09:15:02Z", "Action": "output", "Package": "p", "Output": line + "\n"}
    ),
    "go log": lambda s, line: f"2026/11/20 09:15:{s} {line}",
    "jenkins": lambda s, line: f"[2026-11-20T09:15:{s}.123Z] {line}\n",
    "stern": lambda s, line: f"pilotd-7d9f container {line}",
    "counter": lambda s, line: f"<{s}> seq={s} {line}",
    "kernel": lambda s, line: f"[   44.3779{s}][    C4] {line}",
    "indented": lambda s, line: f"    {line}",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_log_gives_the_same_report(form):
    [plain] = scan(recording("order-one.log"))
    data = wrap(FORMS[form])
    if form == "bom":
        data = b"\xef\xbb\xbf" + data
    [report] = scan(data)
    assert (report.key_id, report.complete, report.mixed) == (plain.key_id, True, False)
    assert [frame for stack in report.stacks for frame in stack.frames] == [
        frame for stack in plain.stacks for frame in stack.frames
    ]


def test_a_whole_report_in_one_json_string():
    [report] = scan(text({"level": "error", "message": recording("order-one.log").decode()}).encode() + b"\n")
    assert (report.key, report.complete) == ((MOOR, RELEASE), True)


def test_the_time_of_the_log_is_taken_and_turned_into_utc():
    [report] = scan(wrap(FORMS["journald iso"]))
    assert report.seen == "2026-11-20T08:15:01.000Z"


@pytest.mark.parametrize(
    "forms",
    [
        ("compose", "api-1", "worker-1"),
        ("journald short", "pilotd[4121]", "pilotd[4122]"),
        ("stern", "pilotd-7d9f", "pilotd-8aaa"),
    ],
)
def test_two_processes_whose_lines_alternate(forms):
    form, mine, others = forms
    one = wrap(FORMS[form]).decode().splitlines()
    lost = recording("lost-caller.log")
    two = [FORMS[form](f"{n:02d}", line).replace(mine, others) for n, line in enumerate(lost.decode().splitlines())]
    mixed = [line for pair in zip(one, two, strict=False) for line in pair] + one[len(two) :] + two[len(one) :]
    found = scan("\n".join(mixed).encode() + b"\n")
    assert sorted((report.key_id, report.complete) for report in found) == sorted(
        (scan(data)[0].key_id, True) for data in (recording("order-one.log"), lost)
    )


@pytest.mark.parametrize("binary", [False, True])
def test_the_export_of_a_journal(binary):
    entries = []
    for number, line in enumerate(recording("order-one.log").decode().splitlines()):
        for pid, message in ((4121, line), (4122, "GET / 200")):
            head = f"__CURSOR=s=1;i={number}\n__REALTIME_TIMESTAMP=1795166102123456\n_PID={pid}\n"
            if binary:
                raw = message.encode()
                entries.append(head.encode() + b"MESSAGE\n" + len(raw).to_bytes(8, "little") + raw + b"\n")
            else:
                entries.append(f"{head}MESSAGE={message}\n_HOSTNAME=test-07\n".encode())
    data = b"\n".join(entries) + b"\n"
    scanner = Scanner()
    found = [*scanner.read(Tape(io.BytesIO(data)), "x", "x", export=True), *scanner.rest(final=True)]
    assert [(one.report.key, one.report.complete) for one in found] == [((MOOR, RELEASE), True)]
    assert found[0].report.seen == "2026-11-20T09:15:02.123Z"


def test_foreign_lines_and_a_line_glued_into_a_path():
    lines = recording("order-one.log").decode().splitlines()
    lines[4] = lines[4][:20] + "2026/11/20 09:15:02 listening on :8080"
    for place in (3, 6, 9, 12):
        lines[place:place] = ["", '{"level":"warn","msg":"slow"}', "--- FAIL: TestOther (0.00s)"]
    [report] = scan("\n".join(lines).encode())
    assert (report.key, report.complete) == ((MOOR, RELEASE), True)


def test_reports_mixed_without_a_prefix_give_no_key_at_all():
    one = recording("order-one.log").decode().splitlines()
    two = recording("lost-caller.log").decode().splitlines()
    mixed = [line for pair in zip(one, two, strict=False) for line in pair] + one[len(two) :] + two[len(one) :]
    found = scan("\n".join(mixed).encode())
    assert found
    assert not any(report.complete for report in found)
    assert all(len(report.known) < 2 for report in found)
