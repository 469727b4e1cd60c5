"""The guide's ten commands, taken from its page and run as they stand on bare Debian hosts against a real sshd.

Only names and addresses are put in. The forge is a host whose sshd gives a private repository to its owner's key for writing
and to a deploy key for reading; its hook sends what GitLab sends.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.need import missing, need_program
from system import image
from system.hosts import Fleet, Host, HostError, wait_for

pytestmark = [pytest.mark.flow, pytest.mark.system]
CHECKOUT = image.CHECKOUT
GUIDE = CHECKOUT / "docs/guides/first-deployment.md"
LOCKS = ("host.txt", "run.txt")
PORT = 8080
APP = """\
import http.server, os

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"VERSION")

http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Answer).serve_forever()
"""
# What a GitLab does after a push, with the address and the secret that a person entered on its page.
FORGE_HOOK = """\
#!/usr/bin/python3
import json, sys, urllib.request
try:
    entered = json.load(open("/srv/git/webhook.json"))
except FileNotFoundError:
    sys.exit()  # no webhook was made yet
for line in sys.stdin:
    before, after, ref = line.split()
    body = {"object_kind": "push", "event_name": "push", "before": before, "after": after, "ref": ref,
            "user_username": "ann", "project": {"path_with_namespace": "team/hello"}, "commits": [],
            "total_commits_count": 1}
    headers = {"Content-Type": "application/json", "X-Gitlab-Event": "Push Hook", "X-Gitlab-Token": entered["secret"]}
    request = urllib.request.Request(entered["url"], json.dumps(body).encode(), headers)
    print("webhook answered", urllib.request.urlopen(request, timeout=10).status)
"""


def commands() -> list[tuple[list[str], str]]:
    """(machines, command) of each fenced block of the guide."""
    blocks = re.findall(r"^```sh ([\w ]+)\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    return [(machines.split(), command.strip()) for machines, command in blocks]


class Forge:
    """A machine with sshd, and a repository that only keys open."""

    def __init__(self, host: Host, person: str) -> None:
        self.host = host
        host.run(["useradd", "--system", "--create-home", "--home-dir", "/srv/git", "--shell", "/bin/sh", "git"])
        self.git("init", "-q", "--bare", "-b", "main", "/srv/git/team/hello.git")
        host.write("/srv/git/team/hello.git/hooks/post-receive", FORGE_HOOK, 0o755)
        self.accept(f"restrict {person}")

    def git(self, *words: str) -> str:
        return self.host.run(["runuser", "-u", "git", "--", "git", *words]).stdout

    def accept(self, line: str) -> None:
        """Add a key."""
        script = "umask 077; mkdir -p /srv/git/.ssh; cat >> /srv/git/.ssh/authorized_keys; chown -R git: /srv/git/.ssh"
        self.host.run(["sh", "-c", script], stdin=line + "\n")

    def add_deploy_key(self, public: str) -> None:
        """What the forge's page does with a deploy key without write access."""
        self.accept(f'restrict,command="git-upload-pack /srv/git/team/hello.git" {public}')

    def enter_webhook(self, url: str, secret: str) -> None:
        """What the forge's page does with a webhook."""
        self.host.write("/srv/git/webhook.json", json.dumps({"url": url, "secret": secret}), 0o644)

    def fingerprint(self) -> str:
        """Of its host key, as it publishes it."""
        return self.host.run(["ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key.pub"]).stdout.split()[1]


class Person:
    """Follows the guide: has a laptop with a checkout, shells on the machines, and the forge's page."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.token = ""
        self.hosts = {name: fleet.host(name, disk=4 << 30).boot() for name in ("server", "web1", "web2", "git")}
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True)
        self.forge = Forge(self.hosts["git"], (folder / "key.pub").read_text().strip())
        self.checkout = folder / "hello"
        self.ssh = (
            f"ssh -F /dev/null -i {folder}/key -o UserKnownHostsFile={folder}/known -o StrictHostKeyChecking=accept-new"
        )
        self.laptop(f"git clone -q git@{self.hosts['git'].address}:team/hello.git {self.checkout}", folder)
        self.laptop("git checkout -q -b main")
        self.change("0")
        self.laptop("git commit -q -m 'A program that listens on $PORT' && git push -q -u origin main")
        self.names = {
            "https://git.example.com/waybill.git": f"http://{fleet.gateway}:{serve(folder, fleet, self.hosts)}/waybill.git",
            "git.example.com": self.hosts["git"].address,
            "waybill.example.com": self.hosts["server"].address,
        }

    def laptop(self, command: str, cwd: Path | None = None) -> str:
        who = {f"GIT_{role}_{key}": "ann@example.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "WAYBILL_"))}
        environment = plain | who | {"PATH": path, "GIT_SSH_COMMAND": self.ssh, "HOME": str(self.folder)}
        done = subprocess.run(
            ["sh", "-c", command], cwd=cwd or self.checkout, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def follow(self, machines: list[str], command: str) -> str:
        """Type a command of the guide, and do what it asks for."""
        for name, real in self.names.items():
            command = command.replace(name, real)
        command = command.replace("wbe1.TOKEN", self.token)
        if machines == ["laptop"]:
            said = self.laptop(command)
        elif "--new-deploy-key" in command:
            said = self.add_repository(command)
        else:
            with ThreadPoolExecutor() as pool:
                said = "\n".join(pool.map(lambda name: self.type(name, command), machines))
        self.said.append(said)
        if found := re.search(r"wbe1\.\S+", said):
            self.token = found[0]
        if found := re.search(r"^address +(\S+)\nsecret +(\S+)", said, re.MULTILINE):
            self.forge.enter_webhook(found[1], found[2])
        return said

    def type(self, machine: str, command: str) -> str:
        done = self.hosts[machine].run(["sh", "-c", command], check=False, timeout=300)
        assert done.returncode == 0, f"{machine}: {command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def add_repository(self, command: str) -> str:
        """Compare the fingerprint; press Enter too early, then give the key to the forge and press it again."""
        with self.hosts["server"].talk(["sh", "-c", command]) as talk:
            assert talk.stdin and talk.stdout
            said = read_until(talk, "Press Enter")
            assert self.forge.fingerprint() in said
            talk.stdin.write("\n")
            talk.stdin.flush()
            early = read_until(talk, "Press Enter")
            assert "Not yet: git fetch failed: git@" in early and "Permission denied" in early
            self.forge.add_deploy_key(re.findall(r"^ssh-ed25519 \S+", said, re.MULTILINE)[0])
            talk.stdin.write("\n")
            talk.stdin.flush()
            rest = talk.stdout.read()
        assert talk.returncode == 0, said + rest
        return said + early + rest

    def change(self, version: str) -> None:
        (self.checkout / "app.py").write_text(APP.replace("VERSION", version))
        self.laptop("git add app.py")

    def await_version(self, version: str, seconds: float = 60.0) -> float:
        """Wait until both hosts answer with it; after how many seconds they did."""
        begun = time.monotonic()
        try:
            wait_for(lambda: self.versions() == [version] * 2, f"{version} on both hosts", seconds)
        except HostError as error:
            server = self.type("server", "waybill status; waybill events; journalctl -u waybill -n 30 --no-pager")
            raise AssertionError(f"{error}: {self.versions()}\n{server}") from error
        return time.monotonic() - begun

    def versions(self) -> list[str]:
        return [ask(self.hosts[name]) for name in ("web1", "web2")]


def ask(host: Host) -> str:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{host.address}:{PORT}/", timeout=2) as answer:
        return answer.read().decode()
    return ""


def read_until(talk: subprocess.Popen[str], words: str) -> str:
    said = ""
    while words not in said:
        more = talk.stdout.read(1)  # type: ignore[union-attr]
        assert more, said
        said += more
    return said


def serve(folder: Path, fleet: Fleet, hosts: dict[str, Host]) -> int:
    """Where bare hosts find Waybill's repository, and a package index: nothing else of the world is there for them."""
    top, copy = folder / "world", folder / "copy"
    listed = subprocess.run(
        ["git", "-C", str(CHECKOUT), "ls-files", "-z", "-co", "--exclude-standard"], capture_output=True, check=True
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (CHECKOUT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, copy / name)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(copy)]
    for words in (["init", "-q"], ["add", "-A", "-f"], ["commit", "-q", "-m", "this checkout"]):
        subprocess.run([*git, *words], check=True)
    subprocess.run([*git, "clone", "-q", "--bare", ".", str(top / "waybill.git")], check=True)
    subprocess.run(["git", "-C", str(top / "waybill.git"), "update-server-info"], check=True)
    links = []
    for lock in LOCKS:
        (top / lock).symlink_to(image.wheels(CHECKOUT / "requirements" / lock))
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer((fleet.gateway, 0), functools.partial(quiet, directory=str(top)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    world = f"http://{fleet.gateway}:{server.server_port}"
    links = " ".join(f"{world}/{lock}/" for lock in LOCKS)
    for host in hosts.values():
        host.write(
            "/etc/pip.conf", f"[global]\nno-index = true\nfind-links = {links}\ntrusted-host = {fleet.gateway}\n"
        )
    return server.server_port


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory):
    """Somebody who has followed the guide to its end."""
    if lacks := image.missing():
        missing(f"{lacks}, for real hosts")
    need_program("ssh-keygen", "openssh-client")
    fleet = Fleet(image.bare(tmp_path_factory.mktemp("bare")))
    try:
        person = Person(fleet, tmp_path_factory.mktemp("person"))
        begun = time.monotonic()
        for machines, command in commands():
            at = time.monotonic()
            said = person.follow(machines, command)
            print(f"\n{' '.join(machines)}$ {command}\n{said}({time.monotonic() - at:.1f} s)")
        person.await_version("0")
        print(f"\nlive on both hosts {time.monotonic() - begun:.0f} s after the first command")
        yield person
    finally:
        fleet.close()


def test_the_guide_has_ten_commands_for_machines_that_it_names():
    found = commands()
    assert len(found) == 10
    assert {name for machines, _ in found for name in machines} == {"server", "web1", "web2", "laptop"}


def test_both_hosts_serve_what_was_pushed(person: Person):
    assert person.versions() == ["0", "0"]
    assert "driver: systemd" in (person.checkout / "waybill.yml").read_text()


def test_each_command_tells_the_next(person: Person):
    server, login, token, host, enrol, _, repository, hook, grant, push = person.said
    assert "Next: waybill login http://127.0.0.1:8470 < /var/lib/waybill/first-admin-token" in server
    assert "waybill enroll" in login
    assert "waybill agent enroll wbe1." in token
    assert host.count("Next: waybill agent enroll") == 2
    assert enrol.count("Next: systemctl enable --now waybill-agent-boot waybill-agent") == 2
    assert "team/hello is known with 1 branch." in repository
    assert "Next: waybill hook create --forge" in repository
    assert "Settings, Webhooks" in hook
    assert "Next: push to main" in grant
    assert "webhook answered 202" in push


def test_a_second_push_is_live(person: Person):
    person.change("1")
    person.laptop("git commit -q -m second && git push -q")
    took = person.await_version("1")
    print(f"\nlive on both hosts {took:.2f} s after the push")


def test_the_doctors_find_nothing_but_the_missing_encryption(person: Person):
    found = json.loads(person.hosts["server"].run(["waybill", "doctor", "--json"]).stdout)
    assert {one["check"] for one in found if one["level"] != "fine"} <= {"encryption", "hooks to a local address"}
    for name in ("web1", "web2"):
        assert "Nothing is wrong." in person.hosts[name].run(["waybill", "doctor"]).stdout


def test_the_hosts_doctor_says_that_its_agent_does_not_run(person: Person):
    host = person.hosts["web2"]
    host.run(["systemctl", "stop", "waybill-agent"])
    done = host.run(["waybill", "doctor"], check=False)
    assert done.returncode == 1
    assert "fault  agent: it does not run; what was live goes on serving." in done.stdout
    fix = re.findall(r"^ +(systemctl enable [^;]*);", done.stdout, re.MULTILINE)[0]
    host.run(["sh", "-c", fix])
    host.run(["waybill", "doctor"])
    assert person.versions() == ["1", "1"]


def test_no_secret_is_in_the_journal_or_readable_by_others(person: Person):
    server = person.hosts["server"]
    journal = server.run(["journalctl", "--no-pager"]).stdout
    assert "wbt_" not in journal and "wbe1." not in journal and "PRIVATE KEY" not in journal
    assert server.run(["find", "/var/lib/waybill", "/root/.config/waybill", "-type", "f", "-perm", "/077"]).stdout == ""
    assert "first-admin-token" not in server.run(["ls", "/var/lib/waybill"]).stdout


def test_installing_again_brings_it_up_to_date_and_no_service_notices(person: Person):
    install = "/usr/src/waybill/packaging/install.sh"
    agent = "systemctl show -P MainPID waybill-agent"
    before = person.type("web1", agent)
    serving = person.hosts["web1"].run(["pgrep", "-f", "app.py"]).stdout
    person.type("web1", install)
    assert person.type("web1", agent) != before
    assert person.hosts["web1"].run(["pgrep", "-f", "app.py"]).stdout == serving
    person.type("server", f"{install} server {person.hosts['server'].address}")
    hosts = functools.partial(person.hosts["server"].run, ["waybill", "hosts", "--json"])
    wait_for(lambda: all(host["connected"] for host in json.loads(hosts().stdout)), "the hosts to be back", 60)
    person.change("2")
    person.laptop("git commit -q -m third && git push -q")
    person.await_version("2")


def test_a_forge_with_another_host_key_is_not_believed(person: Person):
    person.forge.host.run(["sh", "-c", "rm /etc/ssh/ssh_host_*; ssh-keygen -A; systemctl restart ssh"])
    url = f"git@{person.forge.host.address}:team/hello.git"
    pinned = "/var/lib/waybill/keys/"
    words = ["sh", "-c", f"waybill repository add team/hello {url} --known-hosts {pinned}repo-*.hosts"]
    done = person.hosts["server"].run(words, check=False)
    assert done.returncode == 7
    assert "host key" in done.stderr.lower()
