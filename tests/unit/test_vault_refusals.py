"""What cannot be variables is refused before it is locked, with its line and without the secret."""

import time

import pytest

from waybill.core.errors import InvalidInputError, TooLargeError
from waybill.vault import identity, sops, variables

ME = identity.new()


def lock(plain, name="p.yml"):
    document = sops.read(plain, name)
    variables.check(document.leaves, name, document.nested)
    return sops.lock(document, [ME.recipient], None, "2026-11-20T12:00:00Z")


REFUSED = {
    "a map": (b"A: 1\nDB:\n  PASSWORD: s3cret\n", "line 3: a map or list is no variable"),
    "a list": (b"A: 1\nB: [s3cret]\n", "line 2: a map or list is no variable"),
    "an empty map": (b"A: {}\n", "line 1: a map or list is no variable"),
    "a bad name": (b"A: 1\nmy-name: s3cret\n", "line 2: the name is none"),
    "a name with a colon": (b'"A:B": s3cret\n', "line 1: a name with a colon"),
    "a number as a name": (b"1: s3cret\n", "line 1: a name must be text"),
    "an empty name": (b'"": s3cret\n', "line 1: a name must be text"),
    "a name twice": (b"A: 1\nB: 2\nA: s3cret\n", "line 3: a name is given twice"),
    "an anchor": (b"A: &s3cret x\n", "line 1: anchors"),
    "an alias": (b"A: *s3cret\n", "line 1: aliases"),
    "a bomb": (b"A: &a [x,x]\nB: &b [*a,*a]\nC: [*b,*b]\n", "line 1: anchors"),
    "a tag": (b"A: !!python/object/apply:os.system [s3cret]\n", "line 1: tags"),
    "an unquoted tag": (b"A: !s3cret\n", "line 1: tags"),
    "an unquoted colon": (b"A: s3cret: x\n", "line 1: this is not YAML"),
    "a stray indent": (b"A: 1\n  B: s3cret\n", "line 2: this is not YAML"),
    "an open quote": (b"A: 1\nB: 's3cret\n", "this is not YAML"),
    "a tab": (b"A: 1\n\tB: s3cret\n", "line 2: this is not YAML"),
    "two documents": (b"A: 1\n---\nB: s3cret\n", "line 2: a second document"),
    "a list for a file": (b"- s3cret\n", "line 1: this is a list"),
    "a word for a file": (b"s3cret\n", "line 1: this is one value"),
    "a carriage return": (b'A: "s3cret\\r"\n', "line 1: A holds a control character"),
    "a NUL": (b'A: "s3cret\\0"\n', "line 1: A holds a control character"),
    "a longer value than Linux takes": (b"A: " + b"x" * 131072 + b"\n", "line 1: A is longer than Linux allows"),
    "not UTF-8": (b"A: s3cret\xff\n", "byte 9 is not UTF-8"),
    "a byte order mark": ("\ufeffA: s3cret\n".encode(), "byte order mark"),
    "a locked value": (b"A: ENC[AES256_GCM,data:x]\n", "line 1: A holds a value that is locked already"),
    "a locked file": (lock(b"A: s3cret\n"), "cannot be locked as it is"),
    "an indented map": (b"  A: s3cret\n", "cannot be locked as it is"),
    "JSON in YAML": (b'{"A": "s3cret"}\n', "cannot be locked as it is"),
    "conflict markers": (b"<<<<<<< ours\nA: 1\n=======\nA: s3cret\n>>>>>>> theirs\n", "conflict markers"),
    "an impossible escape": (b'A: "\\UFFFFFFFF s3cret"\n', "line 1"),
    "deep nesting": (b"A: " + b"[" * 5000 + b"]" * 5000, "nested deeper"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_yaml_is_refused_with_its_line_and_without_the_secret(what):
    plain, sentence = REFUSED[what]
    with pytest.raises(InvalidInputError) as caught:
        lock(plain)
    assert sentence in caught.value.reason and "p.yml" in caught.value.reason
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("plain", "sentence"),
    [
        (b"A=1\ns3cret\n", "line 2: this is neither NAME=value nor a comment"),
        (b"A=1\nA=s3cret\n", "line 2: a name is given twice"),
        (b"export A=s3cret\n", "line 1: the name is none"),
        (b"A=s3cret\r\n", "line 1: it ends with a carriage return"),
        (b"sops_mac=s3cret\nA=1\n", "cannot be locked"),
    ],
)
def test_bad_dotenv_is_refused_with_its_line_and_without_the_secret(plain, sentence):
    with pytest.raises(InvalidInputError) as caught:
        lock(plain, "p.env")
    assert sentence in caught.value.reason
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("name", ["p.yml", "p.env", "p.enc.json"])
def test_ten_megabytes_are_refused_at_once(name):
    start = time.perf_counter()
    with pytest.raises(TooLargeError, match="524288"):
        sops.read(b"A: x\n" * 2_000_000, name)
    assert time.perf_counter() - start < 0.5


def test_a_name_without_a_syntax_is_refused():
    with pytest.raises(InvalidInputError, match="tells no syntax"):
        sops.read(b"A: 1\n", "p.txt")
