"""Steps of the story: each is told, performed as a user would, timed, and checked."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Container
from pathlib import Path
from typing import Any

WAYBILL = Path(sys.executable).with_name("waybill")
COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


FOREIGN = ("WAYBILL_", "GIT_", "SOPS_", "XDG_")


class StepError(Exception):
    """A step did not hold."""


class Story:
    """Tells what happens, runs commands, keeps the processes that it started.

    Args:
        folder: Where everything of the demonstration stands.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.began = time.monotonic()
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)},
            "HOME": str(folder / "home"),
            "XDG_CONFIG_HOME": str(folder / "home/config"),
            "XDG_STATE_HOME": str(folder / "home/state"),
            "GIT_AUTHOR_NAME": "Demo",
            "GIT_AUTHOR_EMAIL": "demo@example.org",
            "GIT_COMMITTER_NAME": "Demo",
            "GIT_COMMITTER_EMAIL": "demo@example.org",
            "GIT_CONFIG_NOSYSTEM": "1",
        }
        (folder / "home").mkdir(parents=True)
        if not os.path.ismount("/dev/shm"):  # a container without memory for users: the demonstration's folder must do
            (folder / "run").mkdir(mode=0o700)
            self.environment["XDG_RUNTIME_DIR"] = str(folder / "run")

    def chapter(self, title: str) -> None:
        """Say what comes."""
        print(f"\n{paint('1', title)}", flush=True)

    def says(self, sentence: str) -> None:
        """Say what was seen."""
        print(f"  {paint('32', '✔')} {sentence}", flush=True)

    def run(
        self, *argv: object, cwd: Path | None = None, show: bool = True, stdin: str = "", ok: Container[int] = (0,)
    ) -> str:
        """Run a command as a user would; returns what it printed.

        Raises:
            StepError: It ended with another status than one of ``ok``.
        """
        words = [str(part) for part in argv]
        shown = " ".join(shlex.quote(word if len(word) < 100 else word[:24] + "…") for word in words)
        shown = shown.replace(str(self.folder), "…")
        if show:
            print(paint("2", f"  $ {shown}"), flush=True)
        if words[0] == "waybill":
            words[0] = str(WAYBILL)
        done = subprocess.run(
            words, cwd=cwd, env=self.environment, input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode not in ok:
            raise StepError(f"{shown} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self, name: str, *argv: object) -> subprocess.Popen[bytes]:
        """Start a program that runs until the end; what it writes goes to ``<name>.log``."""
        words = [str(part) for part in argv]
        print(paint("2", f"  $ {shlex.join(words).replace(str(self.folder), '…')} &"), flush=True)
        words[0] = str(WAYBILL) if words[0] == "waybill" else words[0]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                words, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append((name, process))
        return process

    def wait(self, what: str, seen: Any, seconds: float = 20.0) -> Any:
        """Wait until ``seen()`` is true; returns it.

        Raises:
            StepError: It did not happen in time, or a program that should run has ended.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := seen():
                return value
            for name, process in self._processes:
                if process.poll() is not None:
                    raise StepError(f"{name} ended with {process.returncode}:\n{self.log(name)}")
            time.sleep(0.01)
        raise StepError(f"{what} did not happen within {seconds:.0f} s")

    def log(self, name: str, lines: int = 30) -> str:
        """The end of a program's log."""
        text = (self.folder / f"{name}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def end(self) -> None:
        """End every program that was started, the last one first."""
        for _, process in reversed(self._processes):
            if process.poll() is None:
                process.terminate()
        for _, process in reversed(self._processes):
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def paint(code: str, text: str) -> str:
    """Text in a terminal's colour, where there is one."""
    return f"\x1b[{code}m{text}\x1b[0m" if COLOUR else text
