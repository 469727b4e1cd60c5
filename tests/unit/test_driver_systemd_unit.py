"""What is written into a unit file is what systemd reads back: tried with a reader written from its manual.

The same values also go through a real systemd in tests/system/test_system_units.py.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from waybill.core.errors import InvalidInputError
from waybill.drivers.model import Release
from waybill.drivers.systemd import Options, unit_name, unit_text

RELEASE = Release(
    key="hello/production", id="20261120T125901Z-0123456789ab", sequence=1, commit="0123456789ab" + 28 * "0",
    root="/var/lib/waybill/r", state="/var/lib/waybill", user="hello", command=("./bin/hello",), environment={},
    port=8080, slot=31000, options=Options(),
)  # fmt: skip
values = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=60)


def rows(text: str) -> list[tuple[str, str]]:
    """The settings of a unit file (systemd.syntax(7)): one a line, '#' and ';' begin comments."""
    assert not re.search(r"\\\n", text), "a line is continued"
    lines = [line for line in text.split("\n") if line.strip() and line[0] not in "#;["]
    return [(line.partition("=")[0], line.partition("=")[2].strip()) for line in lines]


def words(text: str) -> list[str]:
    """Its words: separated by white space, quoted with C escapes; then specifiers, of which only '%%' is harmless."""
    found = []
    for word in re.findall(r'"((?:[^"\\]|\\.)*)"', text):
        plain = re.sub(r"\\(.)", lambda escape: {"n": "\n", "t": "\t"}.get(escape[1], escape[1]), word)
        assert not plain.replace("%%", "").count("%"), f"a specifier is left in {word}"
        found.append(plain.replace("%%", "%"))
    return found


@given(st.lists(values, max_size=5), st.dictionaries(st.from_regex("[A-Z_][A-Z0-9_]*", fullmatch=True), values))
def test_arguments_and_variables_come_back_as_they_were(arguments: list[str], variables: dict[str, str]):
    variables.pop("PORT", None)
    text = unit_text(msgspec.structs.replace(RELEASE, command=("./run it", *arguments), environment=variables))
    [start] = [value for name, value in rows(text) if name == "ExecStart"]
    assert start[0] == ":"
    assert words(start) == ["/var/lib/waybill/r/run it", *arguments]
    environment = [words(value) for name, value in rows(text) if name == "Environment"]
    assert environment == [[f"{name}={value}"] for name, value in (variables | {"PORT": "31000"}).items()]


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_any_text_is_either_held_or_refused(value: str, name: str, root: str, program: str):
    release = msgspec.structs.replace(
        RELEASE, root="/" + root, command=(program, value), environment={name: value}, secrets="/run/" + root
    )
    try:
        text = unit_text(release)
    except InvalidInputError:
        return
    names = {row[0] for row in rows(text)}
    assert names <= {row[0] for row in rows(unit_text(msgspec.structs.replace(RELEASE, secrets="/run/x")))}
    assert dict(rows(text))["EnvironmentFile"].replace("%%", "%") == "/run/" + root


@pytest.mark.parametrize("value", ["a\0b", "\x1b[31m", "\r", "\x7f", "\ud800"])
def test_what_systemd_would_drop_without_a_word_is_refused(value: str):
    with pytest.raises(InvalidInputError, match="control character"):
        unit_text(msgspec.structs.replace(RELEASE, environment={"A": value}))


@pytest.mark.parametrize("user", [None, "root"])
def test_nothing_runs_as_root(user: str | None):
    with pytest.raises(InvalidInputError, match="no user"):
        unit_text(msgspec.structs.replace(RELEASE, user=user))


@pytest.mark.parametrize("program", ["", "-x", "a b", "@x", "+x", "!x", ":x", "|x", "x;y"])
def test_a_program_whose_name_means_something_else_to_systemd_is_refused(program: str):
    with pytest.raises(InvalidInputError):
        unit_text(msgspec.structs.replace(RELEASE, command=(program,)))


@pytest.mark.parametrize(
    ("command", "started"),
    [
        ("./bin/hello", "/var/lib/waybill/r/bin/hello"),
        ("bin/hello", "/var/lib/waybill/r/bin/hello"),
        ("/usr/bin/python3", "/usr/bin/python3"),
        ("python3", "python3"),
    ],
)
def test_a_path_is_one_in_the_release_and_a_bare_name_is_a_program_of_the_host(command: str, started: str):
    text = unit_text(msgspec.structs.replace(RELEASE, command=(command,)))
    assert words(dict(rows(text))["ExecStart"]) == [started]


def test_secrets_are_named_by_their_file_and_never_written():
    text = unit_text(msgspec.structs.replace(RELEASE, secrets="/run/waybill/hello.env"))
    assert dict(rows(text))["EnvironmentFile"] == "/run/waybill/hello.env"


def test_two_services_never_share_a_unit():
    # One push of one repository may deploy both in the same second.
    first = msgspec.structs.replace(RELEASE, key="shop-api/production")
    second = msgspec.structs.replace(RELEASE, key="shop/api-production")
    assert unit_name(first) != unit_name(second)
    assert PurePosixPath(unit_name(first)).name == unit_name(first)


@pytest.mark.parametrize("key", ["../x/production", "hello/", "hello", "hel lo/production", "hello/a/b", "a.b/c"])
def test_a_unit_is_named_after_nothing_else(key: str):
    with pytest.raises(InvalidInputError):
        unit_name(msgspec.structs.replace(RELEASE, key=key))


@pytest.mark.parametrize("drain", [0.0, 2.0, 60.0])
def test_a_version_always_gets_time_to_end_and_never_forever(drain: float):
    text = unit_text(msgspec.structs.replace(RELEASE, drain=drain))
    assert float(dict(rows(text))["TimeoutStopSec"]) == max(5.0, drain)


@pytest.mark.parametrize(
    "given_options", [{"memory": "0"}, {"memory": "1 G"}, {"tasks": 0}, {"files": 1}, {"memroy": 1}]
)
def test_options_out_of_range_are_refused(given_options: dict):
    class Strict(Options, forbid_unknown_fields=True):
        pass

    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(given_options, Strict)
