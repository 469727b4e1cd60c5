"""A server on the tests' machine and agents on real hosts, driven with the commands that a person has."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from system.hosts import Fleet, Host, wait_for

WAYBILL = [sys.executable, "-c", "from waybill.cli.main import main; main()"]
PACKAGED = Path(__file__).parents[2] / "packaging" / "systemd"
HELLO = Path(__file__).parent / "on_host" / "hello.py"
PORT = 8080
FILE = f"""\
service: hello
environments:
  production:
    branches: [main]
    hosts: {{role: web}}
    variables: .waybill/production.enc.yml
    run: {{driver: systemd, command: [python3, hello.py], port: {PORT}, drain: 3s}}
    health: {{path: /health, within: 3s}}
"""


class Platform:
    """The server, its repository, and what a person does with them."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet = fleet
        self.folder = folder
        self.hosts: list[Host] = []
        self.checkout = folder / "hello"
        self.url = ""
        self.token = ""
        self._server: subprocess.Popen[bytes] | None = None
        self._ports = ("0", "0")

    # -- the server -------------------------------------------------------------------------------------------------

    def start_server(self, data: str = "server") -> None:
        """Start it, on the same ports as before."""
        log = self.folder / f"{data}.log"
        public, agents = self._ports
        words = ["serve", "--data", str(self.folder / data), "--json", "--listen", self.fleet.gateway, "--port", public]
        words += ["--agents-listen", self.fleet.gateway, "--agents-port", agents]
        with log.open("wb") as file:
            self._server = subprocess.Popen(
                [*WAYBILL, *words], stdout=file, stderr=file, env=os.environ | {"WAYBILL_SWEEP": "0.5"}
            )
        text = wait_for(lambda: "serving" in (said := log.read_text()) and said, "the server to serve", 30)
        found = re.search(r"wbt_\S+", text)
        self.token = found[0] if found else self.token
        told = next(json.loads(line) for line in text.splitlines() if '"serving"' in line)
        self.url = told["public"]
        self._ports = (told["public"].rpartition(":")[2], told["agents"].rpartition(":")[2])

    def stop_server(self) -> None:
        """SIGKILL: it has no say in it."""
        if self._server:
            self._server.send_signal(signal.SIGKILL)
            self._server.wait()
            self._server = None

    def waybill(self, *words: str) -> str:
        """What a command answers."""
        person = {
            "WAYBILL_SERVER": self.url,
            "WAYBILL_TOKEN": self.token,
            "XDG_CONFIG_HOME": str(self.folder / "config"),
        }
        done = subprocess.run(
            [*WAYBILL, *words], cwd=self.checkout if self.checkout.exists() else self.folder,
            capture_output=True, text=True, timeout=60, env=os.environ | person,
        )  # fmt: skip
        assert done.returncode == 0, f"waybill {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def post(self, path: str, body: dict) -> dict:
        """What the API answers."""
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    # -- hosts ------------------------------------------------------------------------------------------------------

    def enrol(self, *names: str) -> None:
        """Boot hosts and enrol them, with the units of the package."""
        made = json.loads(self.waybill("enroll", "--label", "role=web", "--uses", str(len(names)), "--json"))
        for name in names:
            host = self.fleet.host(name).boot()
            host.run(["ln", "-s", "/opt/waybill/bin/waybill", "/usr/bin/waybill"])
            for unit in PACKAGED.glob("*.service"):
                host.write(f"/lib/systemd/system/{unit.name}", unit.read_text())
            host.run(["waybill", "agent", "enroll", made["token"], "--name", name, "--allow", "hello/*"])
            host.run(["systemctl", "enable", "--now", "waybill-agent-boot", "waybill-agent"])
            self.hosts.append(host)

    def known_hosts(self) -> dict[str, dict]:
        """The hosts as the server sees them."""
        return {host["name"]: host for host in json.loads(self.waybill("status", "--json"))["hosts"]}

    # -- the repository ---------------------------------------------------------------------------------------------

    def make_repository(self) -> None:
        """A bare repository that may deploy hello/production, and a checkout with a locked secret."""
        bare = self.folder / "hello.git"
        self.git("init", "-q", "--bare", "-b", "main", str(bare), cwd=self.folder)
        self.git("clone", "-q", str(bare), str(self.checkout), cwd=self.folder)
        self.git("checkout", "-q", "-b", "main")
        shutil.copy(HELLO, self.checkout / "hello.py")
        (self.checkout / "waybill.yml").write_text(FILE)
        (self.checkout / ".waybill").mkdir()
        (self.checkout / ".waybill" / "production.yml").write_text('SECRET: it\'s "50%" $HOME \\\n')
        self.waybill("lock", "production")
        self.post("/api/repositories", {"name": "team/hello", "url": str(bare)})
        self.waybill(
            "grant", "hello/production", "--repository", "team/hello", "--branch", "main", "--host", "role=web"
        )
        for name, host in self.known_hosts().items():
            words = ("keys", "grant", "production", name, "--service", "hello", "--fingerprint", host["fingerprint"])
            self.waybill(*words)

    def git(self, *words: str, cwd: Path | None = None) -> str:
        """Run git in the checkout."""
        who = ("-c", "user.name=ann", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *who, *words], cwd=cwd or self.checkout, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def push(self, version: str, behaviour: str = "") -> str:
        """Commit and push a version; its commit."""
        (self.checkout / "version").write_text(version)
        (self.checkout / "behaviour").write_text(behaviour)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", f"version {version}")
        self.git("push", "-q", "origin", "main")
        return self.git("rev-parse", "HEAD")

    # -- what users and people see ----------------------------------------------------------------------------------

    def versions(self) -> list[str]:
        """The version that each host's users see."""
        return [ask(host).get("version", "") for host in self.hosts]

    def await_versions(self, version: str, seconds: float = 60.0) -> float:
        """Wait until every host serves it; after how many seconds the last one did."""
        begun = time.monotonic()
        try:
            wait_for(lambda: set(self.versions()) == {version}, f"version {version} on every host", seconds)
        except Exception as error:
            raise AssertionError(f"{error}\n{self.versions()}\n{self.waybill('status')}\n{self.journals()}") from error
        return time.monotonic() - begun

    def rollout(self, commit: str) -> dict:
        """The newest rollout of a commit; empty before there is one."""
        request = urllib.request.Request(f"{self.url}/api/rollouts", headers={"authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=30) as response:
            return next((one for one in json.load(response) if one["commit"] == commit), {})

    def journals(self) -> str:
        """The end of every agent's log."""
        argv = ["journalctl", "-n", "25", "--no-pager", "-u", "waybill-agent*"]
        return "\n".join(f"{host.name}:\n{host.run(argv, check=False).stdout}" for host in self.hosts if host.pid)


def ask(host: Host) -> dict:
    """What a user of a host is told; nothing where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://{host.address}:{PORT}/", timeout=2) as response:
            return json.load(response)
    except OSError:
        return {}
