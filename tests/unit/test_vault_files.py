"""Locking and opening: what survives, what an edit changes, and what is refused."""

import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from waybill.core import canonical
from waybill.core.errors import InvalidInputError, WaybillError
from waybill.vault import identity, sops, variables
from waybill.vault.open import open_variables

AT, LATER = "2026-11-20T12:00:00Z", "2026-11-20T12:00:01Z"
ME = identity.new()
OTHER = identity.new()

PLAIN = b"""\
# where the data lives, password hunter2
DB_URL: postgres://app:hunter2@db/app   # rotate in May
PORT: 8080

VERSION: 1.10
MODE: 0777
SINCE: 2026-01-31
RATIO: 0.25
DEBUG: true
SHOUT: True
KEY: |
  -----BEGIN KEY-----
  abc

  -----END KEY-----
# after the key
QUOTED: 'it''s # not a comment'
ESCAPED: "tab\\t, \\u2603"
EMPTY: ""
NOTHING:
REGION_unencrypted: 1.50
LAST: x"""

VALUES = {
    "DB_URL": "postgres://app:hunter2@db/app", "PORT": "8080", "VERSION": "1.10", "MODE": "0777", "SINCE": "2026-01-31",
    "RATIO": "0.25", "DEBUG": "true", "SHOUT": "True", "KEY": "-----BEGIN KEY-----\nabc\n\n-----END KEY-----\n",
    "QUOTED": "it's # not a comment", "ESCAPED": "tab\t, ☃", "EMPTY": "", "NOTHING": "", "REGION_unencrypted": "1.50",
    "LAST": "x",
}  # fmt: skip


def lock(plain, name="p.yml", previous=None, at=AT):
    document = sops.read(plain, name)
    variables.check(document.leaves, name, document.nested)
    return sops.lock(document, [ME.recipient], previous, at)


def unlock(locked, name="p.enc.yml", me=ME):
    return sops.unlock(sops.read(locked, name), [me])


def opened(locked, name="p.enc.yml", me=ME):
    return open_variables(locked, name, me.secret, canonical.digest(locked))


def test_a_service_gets_every_value_as_it_was_written():
    assert opened(lock(PLAIN)) == VALUES


def test_nothing_secret_is_left_readable_not_even_in_comments():
    locked = lock(PLAIN)
    for secret in (b"hunter2", b"8080", b"May", b"abc", b"where the data lives", b"not a comment"):
        assert secret not in locked
    assert b'REGION_unencrypted: "1.50"' in locked  # the form that every reader takes for the same text


def test_comments_order_and_blank_lines_survive():
    text = sops.plain_text(unlock(lock(PLAIN)))
    lines = text.splitlines()
    assert lines[:2] == PLAIN.decode().splitlines()[:2]
    assert "# after the key" in lines and lines[3] == ""
    assert [line.split(":")[0] for line in lines if line[:1].isupper()] == list(VALUES)
    assert text.count("KEY: |\n  -----BEGIN KEY-----\n  abc\n\n  -----END KEY-----\n") == 1
    read_by_another = YAML(typ="safe").load(text)
    assert {name: "" if value is None else value for name, value in read_by_another.items()} == {
        **VALUES, "PORT": 8080, "RATIO": 0.25, "DEBUG": True,
    }  # fmt: skip


def test_what_was_unlocked_locks_to_the_same_bytes():
    locked = lock(PLAIN)
    known = unlock(locked)
    assert lock(sops.plain_text(known).encode(), previous=known, at=LATER) == locked


def test_an_edit_changes_its_own_line_the_time_and_the_mac_only():
    locked = lock(PLAIN)
    known = unlock(locked)
    text = sops.plain_text(known)
    after = lock(text.replace("8080", "9090").encode(), previous=known, at=LATER)
    differing = [
        new.split(":")[0].strip()
        for old, new in zip(locked.decode().splitlines(), after.decode().splitlines(), strict=True)
        if old != new
    ]
    assert differing == ["PORT", "lastmodified", "mac"]
    assert opened(after) == {**VALUES, "PORT": "9090"}


def test_a_name_that_comes_or_goes_leaves_the_others_as_they_are():
    known = unlock(lock(PLAIN))
    text = sops.plain_text(known)
    after = lock(("NEW: 1\n" + text.replace("LAST: x\n", "")).encode(), previous=known, at=LATER)
    kept = set(after.splitlines()) & set(known.document.text.encode().splitlines())
    assert sum(b": ENC[" in line and not line.startswith(b" ") for line in kept) == 11
    assert list(opened(after)) == ["NEW", *[name for name in VALUES if name != "LAST"]]


def test_the_same_value_twice_has_two_ciphertexts():
    locked = lock(b"A: same\nB: same\n").decode().splitlines()
    assert locked[0].split("data:")[1] != locked[1].split("data:")[1]


def test_locking_anew_replaces_data_key_and_every_ciphertext():
    first, second = lock(PLAIN), lock(PLAIN)
    assert not {line for line in first.splitlines() if b"ENC[" in line} & set(second.splitlines())
    assert unlock(first).key != unlock(second).key


def test_dotenv_is_read_as_sops_reads_it():
    plain = b'# note\nA=1\nB= spaced \nC="quotes stay"\nD=two\\nlines\n\nE=a=b#c\nF=\nG_unencrypted=seen'
    locked = lock(plain, "p.env")
    assert b"spaced" not in locked and b"note" not in locked and b"\nG_unencrypted=seen\n" in locked
    assert opened(locked, "p.enc.env") == {
        "A": "1", "B": " spaced ", "C": '"quotes stay"', "D": "two\nlines", "E": "a=b#c", "F": "",
        "G_unencrypted": "seen",
    }  # fmt: skip
    assert sops.plain_text(unlock(locked, "p.enc.env")) == plain.decode() + "\n"


NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=8).filter(
    lambda name: not name.startswith("sops") and name.lower() not in ("null", "true", "false")
)
TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="".join(map(chr, [*range(9), *range(11, 32), 127]))),
    max_size=60,
).filter(lambda text: not text.startswith("ENC[AES256_GCM,"))


def quoted(text):
    return '"' + "".join(char if char.isalnum() and char.isascii() else f"\\U{ord(char):08x}" for char in text) + '"'


@given(st.dictionaries(NAMES, TEXTS, min_size=1, max_size=6))
@example({"A": "\n", "B": "a\n\n", "C": " a\nb", "D": "a\n b\n", "E": "true", "F": "1.0", "G": "\x85", "H": "#"})
@example(
    {
        "I": "-",
        "J": "a\n#b\nc",
        "K": "a: b",
        "L": "𐀀\ufeff",
        "M": "x\n\t\ny",
        "N": "~",
        "P": "ENC[x",
        "O": "a\u2028b\nc",
    }
)
@settings(max_examples=150, deadline=None)
def test_whatever_text_is_locked_comes_out_again_and_survives_unlock_and_lock(values):
    plain = "".join(f"{name}: {quoted(value)}\n" for name, value in values.items()).encode()
    locked = lock(plain)
    assert opened(locked) == values
    known = unlock(locked)
    text = sops.plain_text(known)
    again = dict(zip(values, sops.read(text.encode(), "p.yml").leaves, strict=True))
    assert {name: (leaf.kind, leaf.text) for name, leaf in again.items()} == {
        name: ("str", value) for name, value in values.items()
    }
    assert lock(text.encode(), previous=known, at=LATER) == locked


@given(st.dictionaries(NAMES, TEXTS.filter(lambda text: "\\n" not in text), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_dotenv_texts_come_out_again(values):
    plain = "".join(name + "=" + value.replace("\n", "\\n") + "\n" for name, value in values.items())
    locked = lock(plain.encode(), "p.env")
    assert opened(locked, "p.enc.env") == values
    assert sops.plain_text(unlock(locked, "p.enc.env")) == plain


PIECES = st.lists(
    st.sampled_from(
        [
            "A",
            "B:",
            ": ",
            "\n",
            "  ",
            "- ",
            "#",
            " # c",
            "'",
            '"',
            "|",
            ">",
            "|+\n",
            "&a",
            "*a",
            "!t",
            "{",
            "}",
            "[",
            "]",
            ",",
            "? ",
            "---\n",
            "...\n",
            "%YAML 1.1\n",
            "<<",
            "sops:",
            "\t",
            "\r\n",
            "ENC[AES256_GCM,data:",
            "é",
            "\\x",
            "=",
            "sops_mac=",
            "\u2028",
            "\x85",
            "~",
            "1.5",
        ]
    ),
    max_size=25,
).map("".join)


@given(st.one_of(PIECES, st.text(max_size=80)), st.sampled_from(["p.yml", "p.env", "p.json"]))
@settings(max_examples=600, deadline=None)
def test_any_text_is_locked_and_opens_to_what_was_read_or_is_refused(text, name):
    try:
        document = sops.read(text.encode("utf-8", "surrogatepass"), name)
        expected = variables.check(document.leaves, name, document.nested)
        locked = sops.lock(document, [ME.recipient], None, AT)
    except InvalidInputError:
        return
    assert opened(locked, name.replace("p.", "p.enc.")) == expected


@given(st.binary(max_size=200), st.sampled_from(["p.yml", "p.env", "p.json"]))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_opened_or_refused(data, name):
    with pytest.raises(WaybillError):
        open_variables(data, name, ME.secret, canonical.digest(data))
