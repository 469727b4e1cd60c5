"""Shows a secret text in the person's editor and leaves nothing behind.

The text lies in a folder of its own that only the person can read, in memory (tmpfs) where there is one, together with
whatever the editor writes beside it (swap and backup files). The folder goes away however the editor ends; one that a
killed waybill left is removed by the next edit.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self

from waybill.core.errors import InvalidInputError, NotFoundError, WaybillError

_PREFIX = "waybill-edit-"


class Editor:
    """Called with a text (and what was wrong with it), returns what the person made of it.

    Args:
        name: Name of the file in the editor; its suffix tells the syntax.
        environ: VISUAL, EDITOR and XDG_RUNTIME_DIR are read.
    """

    def __init__(self, name: str, environ: Mapping[str, str]) -> None:
        self._name = name
        self._command = shlex.split(environ.get("VISUAL") or environ.get("EDITOR") or "vi")
        self._base = _memory(environ)
        self._handlers: dict[int, Any] = {}
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        _sweep(self._base)
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, _end)
        # Ctrl-C belongs to the editor; a handler (unlike ignoring) is not inherited by it.
        self._handlers[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=self._base))
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def __call__(self, text: str, complaint: InvalidInputError | None) -> str:
        """Show the text until the editor ends.

        Raises:
            InvalidInputError: The text was wrong and nobody is there to correct it.
            WaybillError: The editor did not end well; nothing is changed then.
        """
        if complaint is not None:
            if not sys.stdin.isatty():
                raise complaint
            print(f"waybill: {complaint}", file=sys.stderr)
            if input("Edit again? [Y/n] ").strip().lower().startswith("n"):
                raise WaybillError("nothing was changed.")
        assert self._folder is not None  # noqa: S101 - entered
        path = self._folder / self._name
        path.write_text(text)
        path.chmod(0o600)
        try:
            status = subprocess.run([*self._command, str(path)], check=False).returncode
        except FileNotFoundError:
            raise NotFoundError(f"there is no editor {self._command[0]!r}.", "Set EDITOR.") from None
        if status:
            raise WaybillError(f"the editor ended with status {status}: nothing was changed.")
        try:
            return path.read_text()
        except (FileNotFoundError, UnicodeDecodeError):
            raise WaybillError("the editor left no text: nothing was changed.") from None


def _end(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _memory(environ: Mapping[str, str]) -> Path:
    """A folder in memory where there is one: the user's own, then the machine's, then the temporary one."""
    for candidate in (environ.get("XDG_RUNTIME_DIR"), "/dev/shm"):  # noqa: S108 - a private folder is made in it
        if candidate and Path(candidate).is_dir() and os.access(candidate, os.W_OK | os.X_OK):
            return Path(candidate)
    return Path(tempfile.gettempdir())


def _sweep(base: Path) -> None:
    """Remove what an edit left that was killed."""
    for folder in base.glob(f"{_PREFIX}*"):
        process = folder.name.removeprefix(_PREFIX).partition("-")[0]
        with suppress(OSError, ValueError):
            if folder.stat().st_uid == os.getuid() and not Path(f"/proc/{int(process)}").exists():
                shutil.rmtree(folder, ignore_errors=True)
