"""Files and values that other programs made, opened here.

``vault/recorded.enc.*`` were made for this test by two independent programs: the Python package ``sops`` 1.18 (the
first SOPS, another code base than today's) encrypted values and MAC, the npm package ``age-encryption`` made the
identity and sealed the data key. Files that Waybill locked were opened by both, MAC included, when this was
recorded.
"""

from pathlib import Path

import pytest

from waybill.core import canonical
from waybill.core.errors import WaybillError
from waybill.vault import cipher, dotenvtext, identity, sops
from waybill.vault.open import open_variables

HERE = Path(__file__).parent / "vault"
IDENTITY = (HERE / "recorded.txt").read_text()


def opened(name):
    data = (HERE / name).read_bytes()
    return open_variables(data, name, IDENTITY, canonical.digest(data))


def test_a_value_that_getsops_published_opens():  # getsops/sops aes/cipher_test.go, TestDecrypt
    published = (
        "ENC[AES256_GCM,data:oYyi,"
        "iv:MyIDYbT718JRr11QtBkcj3Dwm4k1aCGZBVeZf0EyV8o=,tag:t5z2Z023Up0kxwCgw1gNxg==,type:str]"
    )
    assert cipher.unseal(b"f" * 32, published, "bar:") == ("str", b"foo")
    assert cipher.unseal(b"f" * 32, published, "baz:") is None
    assert cipher.unseal(b"g" * 32, published, "bar:") is None


def test_the_age_key_that_getsops_published_opens():  # getsops/sops age/keysource_test.go, mockIdentity
    [published] = identity.parse(
        "AGE-SECRET-KEY-1G0Q5K9TV4REQ3ZSQRMTMG8NSWQGYT0T7TZ33RAZEE0GZYVZN0APSU24RK7", "published"
    )
    assert published.recipient == "age1lzd99uklcjnc0e7d860axevet2cz99ce9pq6tzuzd05l5nr28ams36nvun"
    armor = (
        "-----BEGIN AGE ENCRYPTED FILE-----\n"
        "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IFgyNTUxOSBvY2t2NkdLUGRvY3l2OGNy\n"
        "MVJWcUhCOEZrUG8yeCtnRnhxL0I5NFk4YjJFCmE4SVQ3MEdyZkFqRWpSa2F0NVhF\n"
        "VDUybzBxdS9nSGpHSVRVMUI0UEVqZkkKLS0tIGJjeGhNQ0Y5L2VZRVVYSm90djFF\n"
        "bzdnQ3UwTGljMmtrbWNMV1MxYkFzUFUK4xjOZOTGdcbzuwUY/zeBXhcF+Md3e5PQ\n"
        "EylloI7MNGbadPGb\n"
        "-----END AGE ENCRYPTED FILE-----\n"
    )
    assert identity.unseal(armor, published, "the published key") == b"data"


def test_flattened_metadata_names_are_places():  # the naming of getsops/sops stores/flatten.go
    document = dotenvtext.read("A=1\nsops_age__list_1__map_enc=x\\ny\nsops_mac=m\n", "x.env")
    assert {place: leaf.text for place, leaf in document.metadata.items()} == {("age", 1, "enc"): "x\ny", ("mac",): "m"}


def test_yaml_of_another_program_opens():
    assert opened("recorded.enc.yml") == {
        "DB_URL": "postgres://app:s3cret@db/app?sslmode=require",
        "PORT": "8080",
        "RATIO": "0.25",
        "DEBUG": "false",
        "VERBOSE": "true",
        "GREETING": "zwei\nZeilen, Zürich ☃",
        "EMPTY": "",
        "REGION_unencrypted": "eu-1",
    }


def test_dotenv_of_another_program_opens():
    assert opened("recorded.enc.env") == {
        "DB_URL": "postgres://app:s3cret@db/app?sslmode=require",
        "PORT": "8080",
        "GREETING": "zwei\nZeilen",
        "QUOTED": '"kept"',
        "EMPTY": "",
    }


@pytest.mark.parametrize("name", ["recorded.enc.yml", "recorded.enc.env"])
def test_editing_a_file_of_another_program_changes_only_what_was_edited(name):
    data = (HERE / name).read_bytes()
    known = sops.unlock(sops.read(data, name), identity.parse(IDENTITY, "recorded"))
    text = sops.plain_text(known)
    plain_name = name.replace(".enc", "")
    assert sops.lock(sops.read(text.encode(), plain_name), [], known, "2026-11-20T12:00:00Z") == data
    edited = text.replace("8080", "9090").encode()
    after = sops.lock(sops.read(edited, plain_name), [], known, "2026-11-20T12:00:00Z")
    before_lines, after_lines = data.decode().splitlines(), after.decode().splitlines()
    changed = [old.strip()[:8] for old, new in zip(before_lines, after_lines, strict=True) if old != new]
    assert len(changed) == 3 and changed[0].startswith("PORT")
    assert open_variables(after, name, IDENTITY, canonical.digest(after))["PORT"] == "9090"


@pytest.mark.parametrize("field", ["mac", "lastmodified"])
def test_without_its_mac_a_file_of_another_program_is_refused(field):
    for name in ("recorded.enc.yml", "recorded.enc.env"):
        lines = (HERE / name).read_text().splitlines(keepends=True)
        data = "".join(line for line in lines if field not in line).encode()
        with pytest.raises(WaybillError, match="has no MAC"):
            open_variables(data, name, IDENTITY, canonical.digest(data))


def test_encrypted_comments_of_nested_maps_open():
    """SOPS binds a comment to the map that it stands in; nested files are read, though not as variables."""
    key = bytes(32)
    value = cipher.seal(key, "str", b"v", "a:b:")
    note = cipher.seal(key, "comment", b" inside", "a:")
    mac = cipher.seal(key, "str", sops.mac([sops.Leaf(("a", "b"), "str", "v", 1)]).encode(), "2026-01-01T00:00:00Z")
    me = identity.new()
    enc = "".join(f"        {line}\n" for line in identity.seal(key, me.recipient).splitlines())
    text = (
        f"a:\n    #{note}\n    b: {value}\n"
        f"sops:\n  age:\n  - recipient: {me.recipient}\n    enc: |\n{enc}"
        f"  lastmodified: '2026-01-01T00:00:00Z'\n  mac: {mac}\n"
    )
    known = sops.unlock(sops.read(text.encode(), "n.enc.yml"), [me])
    assert sops.plain_text(known) == "a:\n    # inside\n    b: v\n"
    with pytest.raises(WaybillError, match="line 3: a map or list is no variable"):
        open_variables(text.encode(), "n.enc.yml", me.secret, canonical.digest(text.encode()))


def test_json_that_sops_locked_opens():
    key, me = bytes(range(32)), identity.new()
    value, number = cipher.seal(key, "str", b"v", "A:"), cipher.seal(key, "int", b"7", "B:")
    mac = cipher.seal(key, "str", sops.mac([sops.Leaf(("A",), "str", "v7", 1)]).encode(), "2026-01-01T00:00:00Z")
    enc = identity.seal(key, me.recipient).replace("\n", "\\n")
    text = (
        f'{{\n\t"A": "{value}",\n\t"B": "{number}",\n\t"C": null,\n\t"sops": {{"kms": null, "age": [{{"recipient": '
        f'"{me.recipient}", "enc": "{enc}"}}], "lastmodified": "2026-01-01T00:00:00Z", "mac": "{mac}"}}\n}}\n'
    ).encode()
    assert open_variables(text, "x.enc.json", me.secret, canonical.digest(text)) == {"A": "v", "B": "7", "C": ""}
    swapped = text.replace(b'"A"', b'"X"').replace(b'"B"', b'"A"').replace(b'"X"', b'"B"')
    with pytest.raises(WaybillError, match="does not open"):
        open_variables(swapped, "x.enc.json", me.secret, canonical.digest(swapped))
