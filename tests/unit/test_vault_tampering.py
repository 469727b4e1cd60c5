"""What someone without the key may do to a locked file, and the sentence that refuses it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waybill.core import canonical
from waybill.core.errors import ForbiddenError, InvalidInputError, WaybillError
from waybill.vault import identity, sops
from waybill.vault.open import open_variables

AT, LATER = "2026-11-20T12:00:00Z", "2026-11-20T12:00:01Z"
ME = identity.new()
OTHER = identity.new()


def lock(plain):
    return sops.lock(sops.read(plain, "p.yml"), [ME.recipient], None, AT)


def opened(locked, me=ME):
    return open_variables(locked, "p.enc.yml", me.secret, canonical.digest(locked))


TWO = b"A: uno-1\nB: dos-2\nC: tres-3\nEMPTY: ''\nOPEN_unencrypted: seen\nOPEN2_unencrypted: x\n"


def line_of(locked, name):
    return next(line for line in locked.decode().splitlines() if line.startswith(name))


def swapped(locked):
    a, b = line_of(locked, "A:"), line_of(locked, "B:")
    return locked.decode().replace(a, "A" + b[1:]).replace(b + "\nC", "B" + a[1:] + "\nC").encode()


def flipped(locked, name):
    line = line_of(locked, name)
    at = line.index("data:") + 5
    return locked.decode().replace(line, line[:at] + ("A" if line[at] != "A" else "B") + line[at + 1 :]).encode()


def reordered(locked):
    a, b = line_of(locked, "A:"), line_of(locked, "B:")
    return locked.decode().replace(f"{a}\n{b}\n", f"{b}\n{a}\n").encode()


TAMPERED = {
    "a value is changed": lambda x: flipped(x, "A:"),
    "two values are swapped": swapped,
    "a value is removed": lambda x: x.replace(line_of(x, "B:").encode() + b"\n", b""),
    "the last value is removed": lambda x: x.replace(line_of(x, "C:").encode() + b"\n", b""),
    "a value comes twice under another name": lambda x: line_of(x, "A:").replace("A:", "Z:", 1).encode() + b"\n" + x,
    "a readable value is added": lambda x: b"EVIL: 1\n" + x,
    "a readable value takes a locked one's place": lambda x: x.replace(line_of(x, "A:").encode(), b"A: evil"),
    "a number takes a locked one's place": lambda x: x.replace(line_of(x, "A:").encode(), b"A: 1"),
    "a value marked readable is added": lambda x: b"EVIL_unencrypted: 1\n" + x,
    "a value marked readable is changed": lambda x: x.replace(b"seen", b"evil"),
    "order is changed": reordered,
    "the type is changed": lambda x: x.replace(
        line_of(x, "A:").encode(), line_of(x, "A:").replace("type:str", "type:comment").encode()
    ),
    "the time is changed": lambda x: x.replace(AT.encode(), LATER.encode()),
    "the MAC is removed": lambda x: x.replace(line_of(x, "    mac").encode() + b"\n", b""),
    "the MAC is emptied": lambda x: x.replace(line_of(x, "    mac").encode(), b'    mac: ""'),
    "the MAC is plain": lambda x: x.replace(line_of(x, "    mac").encode(), b"    mac: ABCDEF"),
    "the metadata is removed": lambda x: x[: x.index(b"sops:")],
    "the end is missing": lambda x: x[:-200],
    "half of it is missing": lambda x: x[: len(x) // 2],
    "the rule is emptied and a value added": lambda x: b"EVIL: 1\n"
    + x.replace(b"unencrypted_suffix: _unencrypted", b"encrypted_suffix: _secret"),
    "another suffix is named": lambda x: x.replace(b"suffix: _unencrypted", b"suffix: A"),
    "a regex leaves values readable": lambda x: x.replace(
        b"    unencrypted_suffix: _unencrypted", b"    encrypted_regex: ^A$"
    ),
    "the MAC is told to cover locked values only": lambda x: x.replace(
        b"    version", b"    mac_only_encrypted: true\n    version"
    ),
    "key groups are named": lambda x: x.replace(b"    version", b"    key_groups:\n    - age: [x]\n    version"),
    "the sealed key is damaged": lambda x: x.replace(
        b"   YWdlLWVuY3J5cHRpb24", b"   YWdlLWVuY3J5cHRpb25"
    ),
    "the sealed key is missing": lambda x: x.replace(b"          enc: |", b"          nce: |"),
    "a colon makes a path": lambda x: x.replace(b"A: ENC", b'"A:": ENC', 1),
    "a map makes a path": lambda x: x.replace(b"A: ENC", b"A:\n  '': ENC", 1),
    "an anchor is set": lambda x: x.replace(b"A: ENC", b"A: &a ENC", 1),
    "conflict markers": lambda x: b"<<<<<<< ours\n" + x + b"=======\n" + x + b">>>>>>> theirs\n",
}  # fmt: skip


@pytest.mark.parametrize("how", TAMPERED)
def test_a_changed_file_is_refused_with_a_sentence(how):
    locked = lock(TWO)
    changed = TAMPERED[how](locked)
    assert changed != locked
    with pytest.raises((ForbiddenError, InvalidInputError)) as caught:
        opened(changed)
    assert "p.enc.yml" in caught.value.reason and caught.value.reason.endswith(".")
    for secret in ("uno-1", "dos-2", "tres-3", "evil", ME.secret):
        assert secret not in str(caught.value)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_no_change_of_a_byte_gives_other_values(data):
    locked = LOCKED_TWO
    at = data.draw(st.integers(0, len(locked) - 1))
    changed = locked[:at] + bytes([data.draw(st.integers(0, 255))]) + locked[at + 1 :]
    try:
        values = open_variables(changed, "p.enc.yml", ME.secret, canonical.digest(changed))
    except WaybillError:
        return
    # Names of readable and empty values are outside of SOPS's MAC; the digest in the manifest covers them on hosts.
    locked_values = {name: value for name, value in values.items() if value in ("uno-1", "dos-2", "tres-3")}
    assert locked_values == {"A": "uno-1", "B": "dos-2", "C": "tres-3"}
    assert sorted(values.values()) == sorted(["uno-1", "dos-2", "tres-3", "", "seen", "x"])


LOCKED_TWO = lock(TWO)


def test_a_file_that_is_not_the_manifests_is_refused_though_it_is_valid():
    with pytest.raises(ForbiddenError, match="digest differs"):
        open_variables(lock(TWO), "p.enc.yml", ME.secret, canonical.digest(lock(TWO)))


def test_a_file_for_somebody_else_names_both():
    with pytest.raises(ForbiddenError) as caught:
        opened(lock(TWO), me=OTHER)
    assert ME.recipient[:12] in caught.value.reason and OTHER.recipient[:12] in caught.value.reason
    assert "moved from another environment" in caught.value.hint


def test_an_earlier_identity_in_the_ring_opens_an_earlier_release():
    locked = lock(TWO)
    ring = identity.write((OTHER, ME), "a ring")
    assert open_variables(locked, "p.enc.yml", ring, canonical.digest(locked))["A"] == "uno-1"
