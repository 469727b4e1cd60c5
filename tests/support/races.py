"""The fake forge as a process, and logs that programs could have written."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from support.forge import PROJECT, TOKEN
from waybill.races.ports import Place

WAYBILL = [sys.executable, "-c", "from waybill.cli.main import main; main()"]


class FakeForge:
    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"
        self.place = Place(url=self.url, project=PROJECT, token=TOKEN)

    def tell(self, path, **body):
        request = urllib.request.Request(f"{self.url}/__{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    @property
    def issues(self):
        return self.tell("state")["issues"]

    @property
    def open(self):
        return [issue for issue in self.issues if issue["open"]]


@contextmanager
def fake_forge():
    started = subprocess.Popen(
        [sys.executable, "-m", "support.forge"], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True
    )
    try:
        yield FakeForge(int(started.stdout.readline()))
    finally:
        started.kill()
        started.wait()
        started.stdout.close()


def stack(*functions, base=10):
    lines = []
    for number, function in enumerate(functions):
        lines += [f"  {function}()", f"      /srv/build/yard/file{number}.go:{base + number} +0x{base + number:x}"]
    return lines


def go_report(first, second, address="0x00c000123450", shift=0, ended=True):
    """A report of Go's detector, by its grammar; ``shift`` moves lines and goroutines as another build would."""
    one, two = 7 + shift, 8 + shift
    lines = [
        "==================",
        "WARNING: DATA RACE",
        f"Write at {address} by goroutine {one}:",
        *stack(*first, base=20 + shift),
        "",
        f"Previous read at {address} by goroutine {two}:",
        *stack(*second, base=40 + shift),
        "",
        f"Goroutine {one} (running) created at:",
        *stack("main.main", base=60 + shift),
        "",
        f"Goroutine {two} (finished) created at:",
        *stack("main.main", base=61 + shift),
    ]
    return "\n".join([*lines, *(["=================="] if ended else [])]) + "\n"


def half(function):
    """A report whose second stack was lost."""
    whole = go_report([function], ["x"])
    return whole.replace(
        f"{chr(10)}  x(){chr(10)}      /srv/build/yard/file0.go:40 +0x28", f"{chr(10)}  [failed to restore the stack]"
    )


def race(number, shift=0, flip=False):
    """The report of one of many races of a program that there is not."""
    sides = [[f"yard.example/crane/hook.(*Hook).Lift{number}"], [f"yard.example/crane/hook.(*Hook).Drop{number}"]]
    first, second = sides[::-1] if flip else sides
    return go_report(first, second, shift=shift)


class Machine:
    """A test machine: logs, settings with a token of its own, and a memory."""

    def __init__(self, folder, name, running, **settings):
        self.folder, self.name = folder, name
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True)
        token = folder / "token"
        token.write_text(TOKEN + "\n")
        token.chmod(0o600)
        told = {
            "forge": "gitlab",
            "url": running.url,
            "project": PROJECT,
            "token_file": "token",
            "host": name,
        } | settings
        lines = [f"{key} = {json.dumps(value)}" for key, value in told.items()]
        (folder / "races.toml").write_text("\n".join(lines) + "\n")

    def write(self, text, name="app.log"):
        with (self.logs / name).open("a") as file:
            file.write(text)

    def arguments(self, build="", *more):
        places = ["--config", str(self.folder / "races.toml"), "--state", str(self.folder / "state")]
        return ["races", "scan", str(self.logs), *places, *(["--build", build] if build else []), *more]

    def scan(self, build="", *more):
        """In this process; returns the exit status."""
        from waybill.cli.main import COMMANDS
        from waybill.cli.run import run

        return run(self.arguments(build, *more), COMMANDS)

    def start(self, build=""):
        """In a process that can be killed."""
        return subprocess.Popen(
            [*WAYBILL, *self.arguments(build)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )


def seen_of(issue):
    """(build, day) → host → count, as the markers of an issue and its comments say; a comment outranks the issue."""
    from waybill.races import text

    found = {}
    for body in (issue["body"], *(comment["body"] for comment in issue["comments"])):
        for seen in text.seen(body):
            found.setdefault((seen.build, seen.day), {}).update(seen.counts)
    return found
