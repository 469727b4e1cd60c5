"""Logs as they are on a machine: rotated, copied, emptied, compressed, damaged, strange; read once and not lost."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import os
import shutil
import subprocess
import sys
import time

import pytest

from support.need import missing
from support.races import WAYBILL, go_report, race
from waybill.races.reading import Reader
from waybill.races.sources import Skipped, members
from waybill.races.state import Memory


class Host:
    def __init__(self, folder):
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.log = self.logs / "app.log"
        self.state = folder / "state"
        self.skipped = []

    def scan(self, *paths):
        """Titles' numbers of what is new and final, in order."""
        memory = Memory(self.state)
        self.skipped = []
        reader = Reader(memory, "b1", "h", self.skipped)
        list(reader.files(members(paths or [self.logs], self.skipped)))
        found = memory.sightings("new")
        with memory.writing():
            for one in found:
                memory.settle(one.id, "filed")
        memory.close()
        return sorted(number(one.report) for one in found)

    def append(self, text, log=None):
        with (log or self.log).open("a") as file:
            file.write(text)


def number(report):
    found = [side.rpartition("Lift")[2] for side in report.key if "Lift" in side]
    return int(found[0]) if found else report.title


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_a_second_scan_finds_nothing_and_what_is_added_is_found(host):
    host.append("x\n" + race(1))
    assert host.scan() == [1]
    assert host.scan() == []
    host.append("y\n" + race(2))
    assert host.scan() == [2]


@pytest.mark.parametrize("place", range(0, 600, 37))
def test_a_report_that_is_still_being_written_is_found_once_and_whole(host, place):
    text = "before\n" + race(1) + "after\n"
    host.append(text[:place])
    host.scan()
    host.append(text[place:])
    host.scan()
    host.append(race(2))
    memory_of_all(host, {1, 2})


def memory_of_all(host, expected):
    host.scan()
    memory = Memory(host.state)
    found = memory.sightings("held", "new", "filed", "quarantine")
    memory.close()
    assert sorted(number(one.report) for one in found) == sorted(expected)
    assert all(one.report.complete for one in found)


def rename(host):
    host.log.rename(host.logs / "app.log.1")
    host.log.touch()


def copytruncate(host):
    shutil.copy2(host.log, host.logs / "app.log.1")
    os.truncate(host.log, 0)


def dated(host):
    host.log.rename(host.logs / "app.log-20261119")
    host.log.touch()


def compressed(host):
    (host.logs / "app.log.1.gz").write_bytes(gzip.compress(host.log.read_bytes()))
    host.log.unlink()
    host.log.touch()


ROTATIONS = [rename, copytruncate, dated, compressed]


@pytest.mark.parametrize("rotate", ROTATIONS)
def test_rotation_loses_nothing_and_repeats_nothing(host, rotate):
    host.append(race(1))
    assert host.scan() == [1]
    host.append(race(2))  # not read yet when the log is rotated
    rotate(host)
    host.append(race(3))
    assert host.scan() == [2, 3]
    assert host.scan() == []


@pytest.mark.parametrize("rotate", ROTATIONS)
@pytest.mark.parametrize("scanned", [False, True])
def test_a_report_cut_by_rotation_is_one_whole_report(host, rotate, scanned):
    text = race(1)
    cut = text.index("Previous")
    host.append(race(7) + text[:cut])
    if scanned:
        assert host.scan() == [7]
    rotate(host)
    host.append(text[cut:])
    assert host.scan() == ([1] if scanned else [1, 7])
    memory_of_all(host, {1, 7})


def test_many_rotations_in_all_compressions(host):
    for day in range(6):
        host.append(race(day))
        assert host.scan() == [day]
        for old in range(5, 0, -1):
            for end in ("", ".gz", ".xz", ".bz2"):
                if (file := host.logs / f"app.log.{old}{end}").exists():
                    file.rename(host.logs / f"app.log.{old + 1}{end}")
        rename(host)
        second = host.logs / "app.log.2"
        if second.exists():
            press, end = [(gzip.compress, "gz"), (lzma.compress, "xz"), (bz2.compress, "bz2")][day % 3]
            (host.logs / f"app.log.2.{end}").write_bytes(press(second.read_bytes()))
            second.unlink()
        assert host.scan() == []


@pytest.mark.parametrize("press", [gzip.compress, lzma.compress, bz2.compress])
def test_compressed_logs_are_known_by_their_bytes(host, press):
    (host.logs / "no-ending").write_bytes(press((race(1) + race(2)).encode()))
    assert host.scan() == [1, 2]
    assert host.scan() == []


def test_zstandard(host):
    try:
        zstd = importlib.import_module("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
    except ModuleNotFoundError:
        (host.logs / "app.log.1.zst").write_bytes(b"\x28\xb5\x2f\xfd" + b"\x00" * 20)
        assert host.scan() == []
        assert "backports.zstd" in host.skipped[0].reason
        missing("the PyPI package backports.zstd")
    (host.logs / "app.log.1.zst").write_bytes(zstd.compress(race(1).encode()))
    assert host.scan() == [1]
    assert host.scan() == []


def test_a_compressed_log_that_is_cut_short_is_read_as_far_as_it_goes(host):
    whole = gzip.compress((race(1) + os.urandom(200_000).hex() + "\n" + race(2)).encode())
    (host.logs / "app.log.1.gz").write_bytes(whole[: len(whole) // 2])
    assert host.scan() == [1]
    [skipped] = host.skipped
    assert "read up to its fault" in skipped.reason
    (host.logs / "app.log.1.gz").write_bytes(whole)
    assert host.scan() == [2]


def test_what_cannot_be_read_is_listed_and_the_rest_is_read(host, tmp_path):
    host.append(race(1))
    (host.logs / "binary").write_bytes(b"\x7fELF\x02\x01\x00\x00" + race(2).encode())
    (host.logs / "system.journal").write_bytes(b"LPKSHHRH" + bytes(100))
    (host.logs / "broken.gz").write_bytes(b"\x1f\x8b\x08nonsense")
    (host.logs / "dangling").symlink_to("nowhere")
    os.mkfifo(host.logs / "pipe")
    assert host.scan(host.logs, tmp_path / "missing") == [1]
    reasons = {file.path.rpartition("/")[2]: file.reason for file in host.skipped}
    assert reasons.keys() == {"binary", "system.journal", "broken.gz", "dangling", "pipe", "missing"}
    assert "journalctl -o export" in reasons["system.journal"]


def test_a_log_is_read_once_under_all_its_names(host):
    host.append(race(1))
    (host.logs / "current").symlink_to("app.log")
    os.link(host.log, host.logs / "other.log")
    assert host.scan(host.logs, host.log) == [1]


def test_a_log_that_was_emptied_under_its_program_begins_with_zeros(host):
    host.append(race(1))
    assert host.scan() == [1]
    host.log.write_bytes(bytes(5000) + race(2).encode())
    assert host.scan() == [2]


def test_a_file_for_each_process(host):
    for pid in (882, 901, 14001):
        host.append(race(pid), host.logs / f"gorace.{pid}")
    assert host.scan() == [882, 901, 14001]
    host.append(race(15), host.logs / "gorace.901")
    assert host.scan() == [15]


def test_a_line_of_100_mb_and_a_block_without_end_take_little_memory_and_time(host):
    with host.log.open("wb") as file:
        file.write(go_report(["a.example/x.A"], ["a.example/x.B"], ended=False).encode())
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b"\n" + race(1).encode())
        file.write(b"WARNING: DATA RACE\nRead at 0x00c000012340 by goroutine 8:\n")
        file.write(b"  main.endless()\n      /x.go:1 +0x1\n" * 100_000)
        file.write(race(2).encode())
    started = time.monotonic()
    script = (
        "import resource, sys; from waybill.cli.main import main\n"
        "try: main()\nfinally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    argv = [sys.executable, "-c", script, "races", "scan", str(host.log), "--state", str(host.state), "--json"]
    done = subprocess.run(["sh", "-c", 'exec "$@"', "sh", *argv], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert '"x.A"' not in done.stdout
    assert done.stdout.count("Lift1") > 0
    assert "Lift2" in done.stdout
    assert time.monotonic() - started < 30


def test_standard_input_is_read_and_known_again(tmp_path):
    def pipe(data):
        argv = [*WAYBILL, "races", "scan", "-", "--state", str(tmp_path)]
        return subprocess.run(argv, input=data, capture_output=True, timeout=60).stdout.decode()

    assert "Lift1" in pipe(race(1).encode())
    assert pipe(race(1).encode()) == ""
    assert "Lift2" in pipe((race(1) + race(2)).encode())


def test_a_folder_of_a_hundred_logs_keeps_them_apart(host):
    for n in range(100):
        host.append(race(n), host.logs / f"svc{n:03d}.log")
    assert host.scan() == list(range(100))
    assert host.scan() == []


def test_two_scans_at_once_do_not_spoil_the_state(host):
    host.append("".join(race(n) for n in range(40)))
    argv = [*WAYBILL, "races", "scan", str(host.logs), "--state", str(host.state), "--json"]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(3)]
    printed = [one.communicate(timeout=60)[0].count(b'"key_id"') for one in running]
    assert sum(printed) == 40


def test_killing_a_scan_loses_nothing(host):
    host.append("".join(race(n) + "filler\n" * 200 for n in range(300)))
    argv = [*WAYBILL, "races", "scan", str(host.logs), "--state", str(host.state)]
    for wait in (0.25, 0.35, 0.45, 0.6):
        started = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(wait)
        started.kill()
        started.wait()
    host.scan()
    memory = Memory(host.state)
    assert len(memory.sightings("new", "filed")) == 300
    memory.close()


def test_skipped_files_say_why():
    assert Skipped("a", "b").reason == "b"
    assert members([], []) == []
    assert io.BytesIO().read() == b""
