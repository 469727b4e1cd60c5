"""The parts of a keeper: variables, log, state."""

import contextlib
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waybill.agent import keeper_process as process
from waybill.agent import keeper_state as state
from waybill.agent.keeper_log import Log, Output


@pytest.mark.parametrize(("text", "expected"), [
    ("A=1\nB=two words  \n", {"A": "1", "B": "two words"}),
    ("# no\n; no\n\nA=1", {"A": "1"}),
    ('A="a b "\n', {"A": "a b "}),
    ('A="\\"\\\\\\$\\`"\n', {"A": '"\\$`'}),
    ('A="\\n"\n', {"A": "\\n"}),
    ("A='a\"\\$'\n", {"A": 'a"\\$'}),
    ('A="two\nlines"\nB=1\n', {"A": "two\nlines", "B": "1"}),
    ("A=a\\\nb\nB=1\n", {"A": "ab", "B": "1"}),
    ("A=\n", {"A": ""}),
    ("A=x=y\n", {"A": "x=y"}),
])  # fmt: skip
def test_variables_read_as_systemd_reads_them(text, expected):
    assert process.parse_environment(text) == expected


VALUES = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=40)


@given(st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True), VALUES))
def test_quoted_values_come_back_whole(values):
    escape = str.maketrans({char: "\\" + char for char in '"\\$`'})
    text = "".join(f'{name}="{value.translate(escape)}"\n' for name, value in values.items())
    assert process.parse_environment(text) == values


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(ValueError):
        process.parse_environment(text)


def test_an_unclosed_quote_names_its_line_but_not_the_secret():
    with pytest.raises(ValueError, match="line 2") as caught:
        process.parse_environment('A=1\nB="hunter2\n')
    assert "hunter2" not in str(caught.value)


def test_the_log_is_turned_over_by_size_and_five_files_are_kept(tmp_path):
    log = Log(str(tmp_path / "service.log"), 1000)
    for number in range(200):
        log.write("v1", [b"line %d" % number])
    log.reopen()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["service.log", *(f"service.log.{n}" for n in range(1, 5))]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    text = "".join(
        (tmp_path / name).read_text() for name in [f"service.log.{n}" for n in (4, 3, 2, 1)] + ["service.log"]
    )
    numbers = [int(line.rsplit(" ", 1)[1]) for line in text.splitlines()]
    assert numbers == list(range(numbers[0], 200))
    assert text.splitlines()[0][:2] == "20" and text.splitlines()[0].split()[1] == "v1"


def test_a_log_that_was_moved_away_is_opened_anew(tmp_path):
    log = Log(str(tmp_path / "service.log"), 1000)
    log.write("v", [b"one"])
    (tmp_path / "service.log").rename(tmp_path / "moved")
    log.reopen()
    log.write("v", [b"two"])
    log.reopen()
    assert (tmp_path / "service.log").read_text().endswith("two\n")


def test_a_full_disk_costs_lines_and_says_how_many(tmp_path):
    program = (
        "import resource, sys; from waybill.agent.keeper_log import Log; from waybill.agent import keeper_state\n"
        "keeper_state.save('.', {'n': 1})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200, 500))\n"
        "log = Log('service.log', 10000)\n"
        "for n in range(20): log.write('v', [b'x' * 40])\n"
        "try: keeper_state.save('.', {'n': 'x' * 400})\n"
        "except OSError: print('refused')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)); log.write('v', [b'room again'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
    text = (tmp_path / "service.log").read_text()
    assert "lines are lost, the disk was full" in text and text.endswith("room again\n")
    assert json.loads((tmp_path / "state.json").read_text())["n"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["service.log", "state.json"]


def test_lines_are_put_together_from_pieces(tmp_path):
    log = Log(str(tmp_path / "service.log"), 10**6)
    output = Output(str(tmp_path / "pipe"), "v", log, os.geteuid())
    writer = output.for_child()
    for piece in (b"one\ntw", b"o\n\nthr", b"ee"):
        os.write(writer, piece)
        output.read()
    os.close(writer)
    output.close()
    log.reopen()
    lines = (tmp_path / "service.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["one", "two", "", "three"]


def test_state_comes_back_and_is_for_the_owner_alone(tmp_path):
    state.save(str(tmp_path), {"current": 3})
    assert state.load(str(tmp_path))["current"] == 3
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600
    assert state.load(str(tmp_path / "none")) == {}
