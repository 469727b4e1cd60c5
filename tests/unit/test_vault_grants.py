"""Granting an environment to hosts and taking it back, against a server kept in memory and a real git checkout."""

import subprocess

import pytest

from support.need import need_program
from waybill.core import canonical
from waybill.core.errors import ForbiddenError, NotFoundError, WaybillError
from waybill.vault import identity, sops
from waybill.vault.adapters.memory import MemoryHostKeys
from waybill.vault.files import locate
from waybill.vault.keystore import Keystore
from waybill.vault.open import open_variables, unseal_ring
from waybill.vault.ports import Host
from waybill.vault.service import Vault, sealed_to


@pytest.fixture
def vault(tmp_path):
    need_program("git")
    checkout = tmp_path / "shop"
    (checkout / ".waybill").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", checkout], check=True)
    (checkout / ".waybill/production.yml").write_text("TOKEN: s3cret\n")
    vault = Vault(locate("production", None, checkout), Keystore({"XDG_CONFIG_HOME": str(tmp_path / "config")}))
    vault.lock()
    return vault


@pytest.fixture
def hosts():
    keys = {name: identity.new() for name in ("web1", "web2")}
    server = MemoryHostKeys()
    for name, key in keys.items():
        server.enroll(name, key.recipient)
    return server, keys


def right(host):
    return host.fingerprint


def on_host(server, keys, name, locked):
    ring = unseal_ring(server.sealed["shop", "production", name], keys[name].secret)
    return open_variables(locked, "production.enc.yml", ring, canonical.digest(locked))


def test_a_granted_host_opens_the_file_and_the_server_cannot(vault, hosts):
    server, keys = hosts
    vault.grant("web1", "shop", server, right)
    assert on_host(server, keys, "web1", vault.files.locked.read_bytes()) == {"TOKEN": "s3cret"}
    carried = "".join(server.sealed.values())
    assert carried.startswith("-----BEGIN AGE ENCRYPTED FILE-----") and "AGE-SECRET-KEY" not in carried
    assert [host.name for host in sealed_to(server, "shop", "production")] == ["web1"]


def test_a_wrong_fingerprint_grants_nothing(vault, hosts):
    server, keys = hosts
    with pytest.raises(ForbiddenError, match="nothing was granted"):
        vault.grant("web1", "shop", server, lambda _: identity.fingerprint(keys["web2"].recipient))
    assert not server.sealed


def test_a_server_that_swaps_a_hosts_key_is_noticed(vault, hosts):
    server, keys = hosts
    printed_at_enrolment = identity.fingerprint(keys["web1"].recipient)
    server.enroll("web1", identity.new().recipient)
    with pytest.raises(ForbiddenError, match="nothing was granted"):
        vault.grant("web1", "shop", server, lambda _: printed_at_enrolment)
    server.hosts["web1"] = Host(name="web1", recipient=server.hosts["web1"].recipient, fingerprint=printed_at_enrolment)
    with pytest.raises(ForbiddenError, match="that is not that of its key"):
        vault.grant("web1", "shop", server, lambda _: printed_at_enrolment)
    assert not server.sealed


def test_an_unknown_host_is_told(vault, hosts):
    with pytest.raises(NotFoundError, match="no host 'web9'"):
        vault.grant("web9", "shop", hosts[0], right)


def test_a_revoked_host_opens_nothing_new_and_the_others_open_old_and_new(vault, hosts):
    server, keys = hosts
    vault.grant("web1", "shop", server, right)
    vault.grant("web2", "shop", server, right)
    before = vault.files.locked.read_bytes()
    kept_by_web1 = unseal_ring(server.sealed["shop", "production", "web1"], keys["web1"].secret)
    done = vault.revoke("web1", "shop", server)
    after = vault.files.locked.read_bytes()
    assert [host.name for host in sealed_to(server, "shop", "production")] == ["web2"]
    with pytest.raises(ForbiddenError):
        open_variables(after, "production.enc.yml", kept_by_web1, canonical.digest(after))
    assert on_host(server, keys, "web2", after) == on_host(server, keys, "web2", before) == {"TOKEN": "s3cret"}
    assert not {line for line in before.splitlines() if b"ENC[" in line} & set(after.splitlines())
    assert any("change the secrets where they were issued" in note for note in done.notes)
    assert vault.variables() == {"TOKEN": "s3cret"}


def test_a_host_whose_key_the_server_swapped_gets_no_new_key_at_a_rotation(vault, hosts):
    server, keys = hosts
    vault.grant("web1", "shop", server, right)
    vault.grant("web2", "shop", server, right)
    server.enroll("web2", identity.new().recipient)
    old = server.sealed["shop", "production", "web2"]
    done = vault.rotate("shop", server)
    assert server.sealed["shop", "production", "web2"] == old
    assert any("web2 was not confirmed" in note for note in done.notes)
    assert on_host(server, keys, "web1", vault.files.locked.read_bytes()) == {"TOKEN": "s3cret"}


def test_revoking_a_host_that_has_nothing_changes_nothing(vault, hosts):
    before = vault.files.locked.read_bytes()
    with pytest.raises(NotFoundError, match="web1 has no key"):
        vault.revoke("web1", "shop", hosts[0])
    assert vault.files.locked.read_bytes() == before


def test_a_recipient_slipped_into_the_file_gets_nothing_at_a_rotation(vault):
    """Names of recipients are outside of SOPS's MAC, so that anyone can write one into the file."""
    thief = identity.new()
    text = vault.files.locked.read_text()
    entry = f"        - recipient: {thief.recipient}\n          enc: x\n"
    vault.files.locked.write_text(text.replace("    age:\n", "    age:\n" + entry))
    done = vault.rotate()
    assert thief.recipient not in vault.files.locked.read_text()
    assert any(thief.recipient in note for note in done.notes)
    with pytest.raises(WaybillError, match="is locked for"):
        sops.unlock(sops.read(vault.files.locked.read_bytes(), "p.enc.yml"), [thief])
