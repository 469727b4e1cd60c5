"""Decrypted variables: opened in a short-lived process, kept in a file in memory, never in the agent itself for long.

The process that decrypts (``unlock``) holds the keys and the libraries for a tenth of a second and is gone; so an idle
agent stays small and has nothing to leak.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from waybill.agent.objects import Store
from waybill.agent.programs import run
from waybill.agent.state import Home, Placed
from waybill.core.errors import InvalidInputError, WaybillError


class Locked(msgspec.Struct, frozen=True, kw_only=True):
    """What the short-lived process is given, by its standard input."""

    identity: str
    sealed: str
    locked: bytes
    path: str
    digest: str


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """What it answers: the variables, and the same as an environment file; or why not."""

    values: dict[str, str] = {}
    file: str = ""
    error: str = ""
    hint: str = ""

    def __repr__(self) -> str:
        return f"Opened({', '.join(self.values)})"


async def unlock(home: Home, store: Store, placed: Placed) -> Opened:
    """The variables of a release.

    Raises:
        InvalidInputError: They cannot be opened with what this host was given.
    """
    where = f"{placed.variables} of commit {placed.manifest.commit[:12]}"
    if not placed.sealed or not placed.variables:
        raise InvalidInputError(
            f"this host was not granted the key of {where}.",
            f"Run `waybill keys grant {placed.manifest.environment} HOST` where the key is.",
        )
    locked = Locked(
        identity=(home.keys / "age.key").read_text(),
        sealed=placed.sealed,
        locked=await store.read(placed.manifest.commit, placed.variables),
        path=placed.variables,
        digest=placed.manifest.locked or "",
    )
    argv = [sys.executable, "-I", "-m", "waybill.agent.unlock"]
    output = await run(argv, stdin=msgspec.json.encode(locked), timeout=60)
    try:
        opened = msgspec.json.decode(output, type=Opened)
    except msgspec.DecodeError as error:
        raise WaybillError(f"{where} could not be opened: the unlocking process gave no answer.") from error
    if opened.error:
        raise InvalidInputError(opened.error, opened.hint)
    return opened


def kept(path: Path) -> Opened | None:
    """What ``put`` wrote, if it is still there and nobody else's."""
    from waybill.vault.variables import parse_environment_file

    try:
        about = path.lstat()
        if about.st_uid != os.geteuid() or about.st_mode & 0o77 or not path.is_file() or path.is_symlink():
            return None
        text = path.read_text()
        return Opened(values=parse_environment_file(text), file=text)
    except (OSError, WaybillError):
        return None


def put(path: Path, content: str) -> None:
    """Write an environment file for its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = path.parent.lstat()
    if about.st_uid != os.geteuid() or not path.parent.is_dir() or path.parent.is_symlink():
        raise WaybillError(f"{path.parent} belongs to somebody else.", "Remove it.")
    path.parent.chmod(0o700)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(content)
    temporary.replace(path)
