"""``make demo``: a server, three hosts, a repository, a secret, and pushes under load, on this machine alone.

Everything is done with the commands that a user has. With ``--once`` it ends by itself, with status 0 only if every
step held; otherwise it leaves all running until Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from demo.load import Load, Tally
from demo.story import StepError, Story, paint

HOSTS = {"web1": "127.0.0.11", "web2": "127.0.0.12", "web3": "127.0.0.13"}
PORT = 8480
"""Unless somebody uses it."""
SAMPLE = Path(__file__).parent / "hello"


class Demo:
    """The chapters of the story."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.story = Story(folder)
        self.bare, self.work = folder / "hello.git", folder / "hello"
        self.public, self.agents, self.port = free_port(), free_port(), service_port()
        self.url = f"http://127.0.0.1:{self.public}"
        self.token = ""

    async def run(self) -> None:
        """Tell all of it."""
        self.server()
        self.hosts()
        self.repository()
        self.secret()
        await self.first_push()
        await self.push_under_load()
        await self.broken_push()
        await self.revert()
        self.timeline()

    def server(self) -> None:
        """Start the server and log in."""
        story = self.story
        story.chapter("A server")
        data = self.folder / "server"
        story.start("server", "waybill", "serve", "--data", data, "--port", self.public, "--agents-port", self.agents)
        self.token = story.wait("the server's start", lambda: _word(story.log("server"), "wbt_"))
        story.wait("the server's answer", lambda: _answers(f"{self.url}/readyz"))
        story.run("waybill", "login", self.url, stdin=self.token)
        story.says(f"it listens at {self.url}, with SQLite in one folder; the first admin token was printed once")

    def hosts(self) -> None:
        """Enrol three hosts; each has an address of its own."""
        story = self.story
        story.chapter("Three hosts")
        made = story.run("waybill", "enroll", "--label", "role=web", "--uses", len(HOSTS), "--json")
        enrolment = json.loads(made)["token"]
        for name, address in HOSTS.items():
            state = self.folder / name
            words = ["waybill", "agent", "enroll", enrolment, "--name", name, "--allow", "hello/production"]
            story.run(*words, "--state", state, "--no-accounts")
            file = state / "agent.toml"
            file.write_text(file.read_text().replace('address = ""', f'address = "{address}"'))
            story.start(name, "waybill", "agent", "run", "--state", state)
        story.wait("all hosts connected", lambda: all(host["connected"] for host in self.status()["hosts"]))
        story.says("each made its own keys, will run hello/production and nothing else, and connects out by mutual TLS")

    def repository(self) -> None:
        """A repository, what it may deploy, and its hook."""
        story = self.story
        story.chapter("A repository")
        story.run("git", "init", "-q", "--bare", "-b", "main", self.bare)
        story.run("git", "init", "-q", "-b", "main", self.work, show=False)
        story.run("git", "remote", "add", "origin", self.bare, cwd=self.work, show=False)
        shutil.copytree(SAMPLE, self.work, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        file = self.work / "waybill.yml"
        file.write_text(file.read_text().replace(f"port: {PORT}", f"port: {self.port}"))
        story.run("waybill", "repository", "add", "team/hello", self.bare)
        made = story.run("waybill", "hook", "create", "--forge", "generic", "--repository", "team/hello", "--json")
        hook = json.loads(made)
        secret = self.folder / "hook.secret"
        secret.write_text(hook["secret"])
        secret.chmod(0o600)
        words = ["waybill", "hook", "install", self.bare, "--server", hook["url"], "--name", "team/hello"]
        story.run(*words, "--secret-file", secret)
        grant = ["waybill", "grant", "hello/production", "--repository", "team/hello", "--branch", "main"]
        story.run(*grant, "--host", "role=web")
        story.says(
            "main of team/hello may deploy hello/production to hosts with role=web; its file can only narrow that"
        )

    def secret(self) -> None:
        """Lock a secret, and seal its key to the three hosts."""
        story = self.story
        story.chapter("A secret that only those hosts can open")
        plain = self.work / ".waybill/production.yml"
        plain.parent.mkdir()
        plain.write_text("GREETING_KEY: correct horse battery staple\n")
        story.run("waybill", "lock", "production", cwd=self.work)
        fingerprints = {host["name"]: host["fingerprint"] for host in self.status()["hosts"]}
        for name in HOSTS:
            words = ["waybill", "keys", "grant", "production", name, "--service", "hello"]
            story.run(*words, "--fingerprint", fingerprints[name], cwd=self.work)
        self.commit("1", "Say hello")
        tree = story.run("git", "grep", "-c", "battery", "HEAD", "--", ".", cwd=self.work, show=False, ok=(0, 1))
        if tree:
            raise StepError("the secret stands in the repository in plain")
        story.says("the repository holds it encrypted (SOPS format), the server never sees it")

    async def first_push(self) -> None:
        """Push; it is live on all hosts."""
        self.story.chapter("Push: it runs on all three")
        took = await self.push("1")
        for name, address in HOSTS.items():
            answer = _get(address, self.port)
            if answer["secret"] != "c4bbcb1f":
                raise StepError(f"{name} could not open the secret: {answer}")
        self.story.says(
            f"live on web1, web2 and web3 {took:.2f} s after git push began; each opened the secret for itself"
        )

    async def push_under_load(self) -> None:
        """Push again while clients ask all three hosts."""
        self.story.chapter("Push again while 48 clients keep asking")
        allowed = {"1", "2"}
        loads = self.loads(allowed)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(self.commit, "2", "Say hello better")
        took = await self.push("2")
        await asyncio.sleep(1.0)
        allowed.discard("1")
        await asyncio.sleep(0.5)
        self.judge(await finish(loads), f"version 2 is live after {took:.2f} s")

    async def broken_push(self) -> None:
        """Push a version that answers 500."""
        self.story.chapter("Push a version that is broken")
        loads = self.loads({"2"})
        await asyncio.sleep(0.3)
        (self.work / "BROKEN").write_text("every answer of this version is a 500\n")
        broken = await asyncio.to_thread(self.commit, "3", "Break everything")
        began = time.monotonic()
        await asyncio.to_thread(self.story.run, "git", "push", "-q", "origin", "main", cwd=self.work)
        rollout = await self.ended(broken)
        took = time.monotonic() - began
        if rollout["state"] not in ("failed", "reverted"):
            raise StepError(f"the broken version's rollout is {rollout['state']}: {rollout['reason']}")
        self.judge(await finish(loads), f"refused by its health check after {took:.2f} s, version 2 kept serving")
        self.story.says(paint("2", rollout["reason"][:200]))

    async def revert(self) -> None:
        """Revert by git, twice: the fault, then the better greeting."""
        self.story.chapter("Revert and push: it is rolled back")
        self.story.run("git", "revert", "--no-edit", "HEAD", cwd=self.work)
        took = await self.push("2")
        self.story.says(f"the fault is reverted: version 2 is confirmed live after {took:.2f} s")
        self.story.run("git", "revert", "--no-edit", "HEAD~2", cwd=self.work)
        took = await self.push("1")
        self.story.says(f"version 2 is reverted as well: version 1 is live again after {took:.2f} s")

    def timeline(self) -> None:
        """Show what the server recorded."""
        self.story.chapter("What happened")
        print(self.story.run("waybill", "events"))

    def end(self) -> None:
        """Take the service off every host, which alone stops it, and end what was started."""
        if self.token:
            for name in HOSTS:
                with contextlib.suppress(OSError):
                    self.api(f"/api/hosts/{name}/remove", {"service": "hello", "environment": "production"})
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and any(_open(address, self.port) for address in HOSTS.values()):
                time.sleep(0.05)
        self.story.end()

    # -- details --

    def status(self) -> dict[str, list[dict[str, object]]]:
        """``waybill status --json``."""
        found: dict[str, list[dict[str, object]]] = json.loads(
            self.story.run("waybill", "status", "--json", show=False)
        )
        return found

    def api(self, path: str, body: object) -> None:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        urllib.request.urlopen(request, timeout=20).close()

    def commit(self, version: str, message: str) -> str:
        """Commit a version; returns the commit's id."""
        (self.work / "VERSION").write_text(version + "\n")
        self.story.run("git", "add", "-A", cwd=self.work, show=False)
        self.story.run("git", "commit", "-q", "-m", message, cwd=self.work)
        return self.story.run("git", "rev-parse", "HEAD", cwd=self.work, show=False).strip()

    async def push(self, version: str) -> float:
        """Push and wait until every host answers with this version; returns seconds since the push began."""
        head = ("git", "rev-parse", "HEAD")
        commit = (await asyncio.to_thread(self.story.run, *head, cwd=self.work, show=False)).strip()
        began = time.monotonic()
        pushing = asyncio.to_thread(self.story.run, "git", "push", "-q", "origin", "main", cwd=self.work)
        task = asyncio.create_task(pushing)
        waiting = set(HOSTS.values())
        while waiting:
            for address in sorted(waiting):
                try:
                    if (await asyncio.to_thread(_get, address, self.port))["version"] == version:
                        waiting.discard(address)
                except OSError:
                    pass
            if time.monotonic() - began > 30:
                raise StepError(f"version {version} is not live on {waiting} after 30 s:\n{self.story.log('web1')}")
            await asyncio.sleep(0.005)
        took = time.monotonic() - began
        await task
        rollout = await self.ended(commit)
        if rollout["state"] != "done":
            raise StepError(f"the rollout is {rollout['state']}: {rollout['reason']}")
        return took

    async def ended(self, commit: str) -> dict[str, str]:
        """Wait until the rollout of a commit has ended; returns it."""
        request = urllib.request.Request(f"{self.url}/api/rollouts", headers={"Authorization": f"Bearer {self.token}"})
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            answer = await asyncio.to_thread(urllib.request.urlopen, request, timeout=5)
            found = [one for one in json.load(answer) if one["commit"] == commit and one["finished"]]
            if found:
                return found[0]
            await asyncio.sleep(0.05)
        raise StepError(f"the rollout of {commit[:12]} did not end within 60 s")

    def loads(self, allowed: set[str]) -> list[Load]:
        """16 clients for each host, half of which keep their connections."""
        return [
            Load(self.port, host=address, fresh=8, kept=8, allowed=allowed.__contains__, pause=0.02)
            for address in HOSTS.values()
        ]

    def judge(self, tally: Tally, sentence: str) -> None:
        """Say how many requests were lost; none may be."""
        lost = sum(tally.lost.values())
        sent = ", ".join(f"{count} on {kind} connections" for kind, count in sorted(tally.sent.items()))
        if lost:
            raise StepError(f"{lost} requests were lost: {dict(tally.lost)}, {tally.details[:5]}")
        self.story.says(f"{sentence}; requests sent: {sent}; lost: 0")


async def finish(loads: list[Load]) -> Tally:
    """Stop all and add up."""
    total = Tally()
    for load in loads:
        one = await load.stop()
        total.sent += one.sent
        total.lost += one.lost
        total.details += one.details
        total.slowest = max(total.slowest, one.slowest)
    return total


def free_port() -> int:
    """A port that nobody uses at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def service_port() -> int:
    """A port that is free on the addresses of all hosts."""
    for port in range(PORT, PORT + 100):
        if not any(_open(address, port) for address in HOSTS.values()):
            return port
    raise StepError(f"every port from {PORT} on is taken on {', '.join(HOSTS.values())}")


def _word(text: str, start: str) -> str:
    return next((word for word in text.split() if word.startswith(start)), "")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _open(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


def _get(address: str, port: int) -> dict[str, str]:
    with urllib.request.urlopen(f"http://{address}:{port}/", timeout=2) as answer:
        found: dict[str, str] = json.load(answer)
        return found


def main() -> int:
    """Run the demonstration; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end by itself; status 0 only if every step held")
    once = parser.parse_args().once
    folder = Path(tempfile.mkdtemp(prefix="waybill-demo-"))
    demo = Demo(folder)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends all that it started, as Ctrl-C does
    began = time.monotonic()
    status = 0
    try:
        asyncio.run(demo.run())
        print(paint("1", f"\nEvery step held, {time.monotonic() - began:.0f} s in all."))
        if not once:
            print(
                f"\nThe live page: {demo.url}\n  log in with {demo.token}\nThe service: "
                + ", ".join(f"http://{address}:{demo.port}/" for address in HOSTS.values())
                + f"\nThe clone to push from: {demo.work}\n\nCtrl-C ends all of it.",
                flush=True,
            )
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        print("\nending")
    except StepError as error:
        print(f"\n{paint('31', '✘')} {error}", file=sys.stderr)
        status = 1
    finally:
        demo.end()
        if status:
            print(f"what it left is in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
