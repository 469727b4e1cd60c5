"""Refusals, as a table: tests/cases/servicefile/*.yml carry what is wrong beside it, as ``#! COLUMN: words of it``."""

import re
from pathlib import Path

import pytest

from servicefile_small import DRIVERS, EXAMPLE
from waybill.core.errors import InvalidInputError
from waybill.deploy.servicefile_parse import parse
from waybill.deploy.servicefile_yaml import InvalidServiceFileError

CASES = sorted((Path(__file__).parent.parent / "cases" / "servicefile").glob("*.yml"))


def expectations(text):
    for number, line in enumerate(text.splitlines(), 1):
        for column, words in re.findall(r"#! (\d+): (.*?)(?=  #! |$)", line):
            yield number, int(column), words


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_every_fault_is_told_with_its_place_and_nothing_else_is(path):
    text = path.read_text()
    with pytest.raises(InvalidServiceFileError) as caught:
        parse(text, path.name, DRIVERS)
    faults = list(caught.value.faults)
    missing = []
    for line, column, words in expectations(text):
        hit = next((f for f in faults if (f.line, f.column) == (line, column) and words in f.sentence), None)
        missing.append(f"{line}:{column}: {words}") if hit is None else faults.remove(hit)
    assert (missing, [str(fault) for fault in faults]) == ([], [])


def test_the_table_is_there():
    assert len(CASES) >= 6


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("", "1:1", "the file is empty; waybill init"),
        ("# nothing\n", "1:1", "the file is empty"),
        ("hello", "1:1", "a service file must be a mapping"),
        ("- a", "1:1", "it is a list"),
        ("service: a\n---\nservice: b\n", "2:1", "one document"),
        ("%YAML 1.1\n---\nservice: a\n", "2:1", "directives"),
        ("service: [a\nb: c\n", "2:2", "this is no YAML"),
        ("service: a\n\tb: c\n", "2:1", "this is no YAML"),
        ("service: a\nb: \x07\n", "2:4", "U+0007"),
        (b"service: a\nb: \xff\n", "2:4", "no UTF-8 at byte 14"),
        ("service: a\x00b", "1:11", "U+0000"),
        ('service: "a\\0"', "1:10", "must be lower-case letters"),
        ("a: " + "[" * 100_000, "1:15", "nested more than 12 deep"),
        ("a: [" + "b," * 11_000 + "]", "1:19999", "at most 10000 values"),
        ("#" * (256 * 1024 + 1), "1:1", "at most 256 KiB"),
        ("service: " + "a" * 41, "1:10", "at most 40"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_place(text, place, words):
    with pytest.raises(InvalidInputError) as caught:
        parse(text, "waybill.yml", DRIVERS)
    lines = [line for line in caught.value.reason.splitlines() if line.startswith(f"waybill.yml:{place}: ")]
    assert any(words in line for line in lines), caught.value.reason


def test_ten_faults_are_shown_and_the_rest_is_counted():
    with pytest.raises(InvalidServiceFileError) as caught:
        parse(EXAMPLE + "".join(f"k{n}: 1\n" for n in range(14)), "api/waybill.yml", DRIVERS)
    lines = caught.value.reason.splitlines()
    assert len(lines) == 11
    assert lines[0].startswith("api/waybill.yml:13:1: there is no key 'k0'")
    assert lines[-1] == "and 4 more."
    assert len(caught.value.faults) == 14


def test_a_control_character_of_the_file_never_reaches_the_terminal():
    with pytest.raises(InvalidServiceFileError) as caught:
        parse('service: hello\n"\\e[31mred": {"\\e]0;": 1}\nbuild: {"\\e[2J": [1]}\n', "waybill.yml", DRIVERS)
    assert "\x1b" not in caught.value.reason
    assert "\\x1b[31mred" in caught.value.reason


def test_without_drivers_the_error_says_that_none_is_known():
    with pytest.raises(InvalidServiceFileError, match="there is no driver 'small'; known: none"):
        parse(EXAMPLE, "waybill.yml", {})
