"""The environment file on a host: read back by systemd's rules, told here a second time, and by the keeper's."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from waybill.core.errors import InvalidInputError
from waybill.vault.open import environment_file, parse_environment_file

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,10}", fullmatch=True)
VALUES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40),
    st.text(st.sampled_from("\"\\$`'\n\t#; =x"), max_size=20),
)


PIECES = re.compile(
    r"""(?P<escape>\\[\s\S])|'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\[\s\S])*)"|(?P<bare>[^\n\r])""",
)


def as_systemd_reads(text):
    """systemd.exec(5), EnvironmentFile=, and the state machine of systemd's src/basic/env-file.c, told anew.

    Comments begin with # or ;. A value may be made of quoted and unquoted pieces; between double quotes a backslash
    only acts before " \\ $ ` and a line end; bare space around a value is dropped.
    """
    variables, at = {}, 0
    while at < len(text):
        skipped = re.compile(r"[ \t\n\r]+|[#;](?:\\[\s\S]|[^\n\r\\])*").match(text, at)
        if skipped:
            at = skipped.end()
            continue
        name = re.compile(r"([^=\n\r]*)(=?)").match(text, at)
        at = name.end()
        if not name[2]:
            continue
        quoted = bare = ""
        while piece := PIECES.match(text, at):
            at = piece.end()
            if piece["escape"]:
                bare += piece["escape"][1].strip("\n\r")
            elif piece["bare"]:
                bare += piece["bare"]
            else:
                double = re.sub(r'\\(\n|["\\$`])', lambda found: found[1].strip("\n"), piece["double"] or "")
                quoted += (piece["single"] or "") + double
        variables[name[1].rstrip(" \t")] = quoted + bare.strip(" \t")
    assert not any(re.search("[\0-\x08\x0b-\x1f\x7f]", value) for value in variables.values()), "systemd drops it"
    return variables


def test_the_rules_as_told_here_read_what_the_manual_shows():
    text = (
        '# note\n; note\nA=plain \nB="one two"\nC=\'sin"gle\'\nD=a\\\nb\nE="x\\"y\\$z\\`"\n'
        'F="keeps \\n as it is"\nG="two\nlines"\nH=\n'
    )
    assert as_systemd_reads(text) == {
        "A": "plain", "B": "one two", "C": 'sin"gle', "D": "ab", "E": 'x"y$z`', "F": "keeps \\n as it is",
        "G": "two\nlines", "H": "",
    }  # fmt: skip


@given(st.dictionaries(NAMES, VALUES, max_size=6))
@example({"A": "\\", "B": '"', "C": "$HOME", "D": "`id`", "E": "\\n", "F": "a\\\nb", "G": "\n\n", "H": " ", "I": "#;'"})
@example({"KEY": "-----BEGIN KEY-----\nabc/+=\n-----END KEY-----\n", "JSON": '{"a": ["\\u2603", "$x"]}', "U": "☃𐀀"})
@settings(max_examples=400, deadline=None)
def test_systemd_and_the_keeper_read_exactly_what_was_meant(variables):
    text = environment_file(variables)
    assert as_systemd_reads(text) == variables
    assert parse_environment_file(text) == variables


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "É", "A=", "A\n", "export A"])
def test_a_name_that_no_environment_can_hold_is_refused(name):
    with pytest.raises(InvalidInputError, match="none that an environment can hold"):
        environment_file({name: "x"})


@pytest.mark.parametrize("char", ["\0", "\r", "\x1b", "\x7f", "\x0b", "\ud800"])
def test_a_value_that_systemd_would_drop_is_refused_without_being_shown(char):
    with pytest.raises(InvalidInputError) as caught:
        environment_file({"A": f"s3cret{char}"})
    assert "A holds a control character" in caught.value.reason and "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ['A="x', "A=x\n", 'A="x" \n', 'A="x"\nA="y"\n', 'A="$x"\n', 'A="\\x"\n', "\n", "# x\n", '1="x"\n', 'A="x"B="y"\n'],
)
def test_a_damaged_environment_file_is_refused_not_half_read(text):
    with pytest.raises(InvalidInputError, match="damaged from line"):
        parse_environment_file(text)


@given(st.text(st.sampled_from('AB="\\$`\n x'), max_size=20))
@settings(max_examples=300, deadline=None)
def test_whatever_the_keeper_reads_is_what_systemd_reads(text):
    try:
        variables = parse_environment_file(text)
    except InvalidInputError:
        return
    assert as_systemd_reads(text) == variables
