"""Identities, fingerprints, and keys sealed to hosts."""

import itertools

import pytest

from waybill.core.errors import ForbiddenError, InvalidInputError
from waybill.vault import identity
from waybill.vault.open import unseal_ring


def test_an_identity_file_reads_back_the_present_identity_first():
    ring = (identity.new(), identity.new())
    text = identity.write(ring, "for a test")
    assert identity.parse(text, "here") == ring
    assert identity.parse(text.replace("\n", "\r\n"), "here") == ring


@pytest.mark.parametrize("text", ["", "# only a comment\n", "AGE-SECRET-KEY-1SECRET\n", "s3cret words\n", "age1abc\n"])
def test_what_is_no_identity_is_refused_without_being_shown(text):
    with pytest.raises(InvalidInputError) as caught:
        identity.parse(text, "the file")
    assert "the file" in caught.value.reason
    assert not text.strip() or text.strip() not in str(caught.value)


def test_an_identity_never_shows_its_secret():
    me = identity.new()
    assert me.secret not in repr(me) and me.secret not in str(me) and me.recipient in repr(me)


def test_a_fingerprint_is_short_and_stands_for_one_recipient():
    recipients = [identity.new().recipient for _ in range(50)]
    prints = [identity.fingerprint(recipient) for recipient in recipients]
    assert len(set(prints)) == 50
    assert all([len(part) for part in each.split("-")] == [4, 4, 4, 4] for each in prints)
    for (one, recipient), (two, other) in itertools.pairwise(zip(prints, recipients, strict=True)):
        assert identity.fingerprint(f"{recipient}\n") == one, "as it is read from a file"
        assert identity.same_fingerprint(one, recipient) and not identity.same_fingerprint(two, recipient)
        assert identity.same_fingerprint(f" {two.upper().replace('-', ' ')}\n", other)


@pytest.mark.parametrize("given", ["", "-", "x", "é"])
def test_anything_else_is_not_the_fingerprint(given):
    assert not identity.same_fingerprint(given, identity.new().recipient)


def test_a_key_sealed_to_a_host_opens_on_that_host_only():
    host, other, ring = identity.new(), identity.new(), identity.write((identity.new(),), "production")
    armor = identity.seal(ring.encode(), host.recipient)
    assert unseal_ring(armor, host.secret) == ring
    with pytest.raises(ForbiddenError, match="does not open with the key of"):
        unseal_ring(armor, other.secret)
    with pytest.raises(ForbiddenError, match="does not open with the key of"):
        unseal_ring(armor.replace("\n", "\nA", 2), host.secret)


@pytest.mark.parametrize("recipient", ["", "age1", "ssh-ed25519 AAAA", "AGE-SECRET-KEY-1X"])
def test_what_is_no_recipient_is_refused(recipient):
    with pytest.raises(InvalidInputError, match="no age recipient"):
        identity.seal(b"x", recipient)
