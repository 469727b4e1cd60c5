"""Keys of an environment and a real server: granted to an enrolled host, opened there, taken back."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from support.need import need, need_program
from waybill.core import canonical
from waybill.core.errors import WaybillError
from waybill.vault.open import open_variables, unseal_ring

pytestmark = pytest.mark.flow
WAYBILL = [sys.executable, "-c", "from waybill.cli.main import main; main()"]


@pytest.fixture
def server(tmp_path):
    """A running server: its address and its admin's token."""
    need("litestar", "the server's packages (waybill[server])")
    log = tmp_path / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*WAYBILL, "serve", "--data", str(tmp_path / "data"), "--port", "0", "--agents-port", "0"],
            stdout=output, stderr=output,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not (found := re.search(r"serving.*public=(\S+)", plain(log))):
                assert time.monotonic() < deadline and process.poll() is None, log.read_text()
                time.sleep(0.02)
            yield {"WAYBILL_SERVER": found[1], "WAYBILL_TOKEN": re.search(r"wbt_\S+", plain(log))[0]}
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def plain(log):
    return re.sub(r"\x1b\[[0-9;]*m", "", log.read_text())


@pytest.fixture
def does(server, tmp_path):
    """The command line of somebody who is logged in, in a checkout with a locked file."""
    need_program("git")
    checkout = tmp_path / "shop"
    (checkout / ".waybill").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", checkout], check=True)
    (checkout / ".waybill/production.yml").write_text("TOKEN: s3cret\n")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SOPS_", "GIT_"))}
    environ |= {"XDG_CONFIG_HOME": str(tmp_path / "config"), **server}

    def run(*arguments, status=0):
        done = subprocess.run(
            [*WAYBILL, *arguments], cwd=checkout, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    run("lock", "production")
    run.locked = checkout / ".waybill/production.enc.yml"
    return run


def enrolled(does, folder, name):
    """Identity of a host that enrolled, and the fingerprint that it printed."""
    token = json.loads(does("enroll", "--json"))["token"]
    asked = ("--allow", "shop/*", "--name", name, "--state", str(folder), "--no-accounts", "--json")
    printed = json.loads(does("agent", "enroll", token, *asked))
    return (folder / "keys/age.key").read_text(), printed["fingerprint"]


def sealed(server, name):
    """What the server carries for a host."""
    request = urllib.request.Request(f"{server['WAYBILL_SERVER']}/api/sealed/shop/production")
    request.add_header("Authorization", f"Bearer {server['WAYBILL_TOKEN']}")
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.load(response).get(name)


def test_a_key_is_granted_used_rotated_and_taken_back(server, does, tmp_path):
    web1, print1 = enrolled(does, tmp_path / "web1", "web1")
    web2, print2 = enrolled(does, tmp_path / "web2", "web2")
    grant = ("keys", "grant", "production")
    refused = does(*grant, "web1", "--service", "shop", status=4)
    assert "nobody is here to confirm the fingerprint" in refused
    refused = does(*grant, "web1", "--service", "shop", "--fingerprint", print2, status=4)
    assert "nothing was granted" in refused and sealed(server, "web1") is None
    for name, fingerprint in (("web1", print1), ("web2", print2)):
        does(*grant, name, "--service", "shop", "--fingerprint", fingerprint)
    listed = json.loads(does("keys", "list", "production", "--service", "shop", "--json"))
    assert [row["host"] for row in listed["hosts"]] == ["web1", "web2"]

    def on_host(name, key):
        data = does.locked.read_bytes()
        ring = unseal_ring(sealed(server, name), key)
        return open_variables(data, "production.enc.yml", ring, canonical.digest(data))

    assert on_host("web1", web1) == on_host("web2", web2) == {"TOKEN": "s3cret"}
    kept_by_web1 = unseal_ring(sealed(server, "web1"), web1)
    does("keys", "revoke", "production", "web1", "--service", "shop")
    assert sealed(server, "web1") is None and on_host("web2", web2) == {"TOKEN": "s3cret"}
    data = does.locked.read_bytes()
    with pytest.raises(WaybillError, match="is locked for"):
        open_variables(data, "production.enc.yml", kept_by_web1, canonical.digest(data))
    assert "web1 has no key of production" in does(
        "keys", "revoke", "production", "web1", "--service", "shop", status=5
    )
    assert "no host" in does(*grant, "web9", "--service", "shop", "--fingerprint", "x", status=5)
