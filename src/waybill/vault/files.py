"""Where an environment's variables lie in a checkout, and what keeps the plain file out of git.

``.waybill/<environment>.yml`` (or ``.env``) is plain and ignored by git; ``.waybill/<environment>.enc.yml`` is locked
and committed. What was unlocked last is recorded in the checkout's git folder, so that locking never drops what a
colleague locked in between.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from waybill.core import canonical
from waybill.core.errors import ConflictError, InvalidInputError, NotFoundError, WaybillError

_ENVIRONMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_SUFFIXES: Final = (".yml", ".yaml", ".env")


class Record(msgspec.Struct, frozen=True):
    """Digests of the locked file that was unlocked last and of the plain file written then."""

    locked: str
    plain: str


class Files(msgspec.Struct, frozen=True, kw_only=True):
    """The two files of one environment.

    Attributes:
        environment: Its name.
        locked: The committed file.
        plain: The ignored file beside it.
        root: Top of the git checkout, None outside of one.
        git: The checkout's own git folder.
    """

    environment: str
    locked: Path
    plain: Path
    root: Path | None
    git: Path | None

    def name(self, path: Path) -> str:
        """How a sentence calls a file: from the top of the checkout where there is one."""
        return str(path.relative_to(self.root)) if self.root and path.is_relative_to(self.root) else str(path)

    @property
    def project(self) -> str:
        """Name of the repository's folder, for people."""
        folder = self.root or self.locked.parent.parent
        return re.sub(r"[^A-Za-z0-9_-]+", "-", folder.name).strip("-") or "project"


def locate(environment: str, file: str | None, start: Path) -> Files:
    """The files of an environment, seen from a folder.

    Args:
        environment: Its name.
        file: Path of the locked file when it is not in ``.waybill/``.
        start: The folder that the person stands in; ``.waybill`` is looked for from here up to the repository's top.

    Raises:
        InvalidInputError: The name is none, or several files could be meant.
    """
    if not _ENVIRONMENT.fullmatch(environment):
        raise InvalidInputError(
            f"{environment!r} is no name of an environment.", "Letters, digits, - and _, at most 40."
        )
    if file is not None:
        locked = (start / file).resolve()
        root, git = _checkout(locked.parent if locked.parent.is_dir() else start)
        stem, dot, suffix = locked.name.rpartition(".enc.")
        if not dot or f".{suffix}" not in (*_SUFFIXES, ".json"):
            raise InvalidInputError(f"{file} is no name of a locked file.", "It ends with .enc.yml or .enc.env.")
        plain = locked.with_name(f"{stem}.{suffix}")
        return Files(environment=environment, locked=locked, plain=plain, root=root, git=git)
    start = start.resolve()
    root, git = _checkout(start)
    folders = [start, *start.parents]
    if root:
        folders = folders[: folders.index(root) + 1] if root in folders else [root]
    top = root or start
    folder = next((each / ".waybill" for each in folders if (each / ".waybill").is_dir()), top / ".waybill")
    found = [each for each in _SUFFIXES if (folder / f"{environment}.enc{each}").exists()] or [
        each for each in _SUFFIXES if (folder / f"{environment}{each}").exists()
    ]
    if len(found) > 1:
        raise InvalidInputError(
            f"{environment} has several files in {folder}: {', '.join(found)}.", "Keep one, or name one with --file."
        )
    suffix = found[0] if found else ".yml"
    return Files(
        environment=environment,
        locked=folder / f"{environment}.enc{suffix}",
        plain=folder / f"{environment}{suffix}",
        root=root,
        git=git,
    )


def _checkout(start: Path) -> tuple[Path | None, Path | None]:
    try:
        found = _git(start, "rev-parse", "--show-toplevel", "--absolute-git-dir")
    except FileNotFoundError:
        return None, None
    lines = found.stdout.splitlines()
    return (Path(lines[0]).resolve(), Path(lines[1])) if found.returncode == 0 and len(lines) == 2 else (None, None)


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def keep_out_of_git(files: Files) -> str:
    """Make sure that git ignores the plain file; returns the line added to ``.gitignore``, empty when none was needed.

    Raises:
        ConflictError: Git tracks the plain file, or another rule takes the ignore line back.
    """
    if files.root is None:
        return ""
    name = files.name(files.plain)
    if _git(files.root, "ls-files", "--error-unmatch", "--", str(files.plain)).returncode == 0:
        raise ConflictError(
            f"git tracks {name} in plain.",
            f"Untrack it with: git rm --cached {name}   Its history still holds every value that was committed: "
            "change those secrets where they were issued.",
        )
    if _ignored(files, files.plain) and _ignored(files, _temporary(files.plain)):
        return ""
    line = "/" + re.sub(r"([\\*?\[])", r"\\\1", name) + "*"
    ignore = files.root / ".gitignore"
    before = ignore.read_text() if ignore.exists() else ""
    ignore.write_text(before + ("\n" if before and not before.endswith("\n") else "") + line + "\n")
    if not _ignored(files, files.plain):
        raise ConflictError(
            f"{name} is not ignored by git although .gitignore says so.", "A rule of another .gitignore takes it back."
        )
    return line


def locked_is_ignored(files: Files) -> bool:
    """Whether git would leave the locked file out of a commit."""
    return files.root is not None and _ignored(files, files.locked)


def _ignored(files: Files, path: Path) -> bool:
    return _git(files.root or path.parent, "check-ignore", "-q", "--", str(path)).returncode == 0


def read(files: Files, path: Path) -> bytes:
    """The bytes of one of the two files.

    Raises:
        NotFoundError: It is not there.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        other = files.plain if path == files.locked else files.locked
        hint = (
            (f"waybill lock {files.environment} makes it." if path == files.locked else "")
            or f"waybill unlock {files.environment} makes it."
            if other.exists()
            else f"Write {files.name(files.plain)}, one NAME: value a line, then: waybill lock {files.environment}"
        )
        raise NotFoundError(f"there is no {files.name(path)}.", hint) from None
    except OSError as error:
        raise WaybillError(f"{files.name(path)} cannot be read: {error.strerror}.") from error


def write(path: Path, data: bytes, mode: int) -> None:
    """Write a file whole: a power cut leaves the old or the new one, and nobody else reads it meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _temporary(path: Path) -> Path:
    """Beside the file and under the same ignore line: ``production.yml.tmp``."""
    return path.with_name(path.name + ".tmp")


def load_record(files: Files) -> Record | None:
    """What was unlocked last in this checkout, None when nothing was."""
    path = _record(files)
    if path is None or not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except msgspec.DecodeError:
        return None


def save_record(files: Files, locked: bytes, plain: bytes) -> None:
    """Remember that this plain file belongs to this locked one."""
    path = _record(files)
    if path is not None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(path, msgspec.json.encode(Record(canonical.digest(locked), canonical.digest(plain))), 0o600)


def _record(files: Files) -> Path | None:
    return files.git / "waybill" / "unlocked" / quote(files.name(files.locked), safe="") if files.git else None
