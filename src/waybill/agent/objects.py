"""Git objects on a host: a bare store for each repository, filled by packs from the server, read by nobody else.

Git runs as its own unprivileged account, with fsck on and without any configuration but what stands here: no hooks,
no filters, no LFS, no submodules, no protocol. A commit counts as present only when it and every object below it were
checked; then a ref says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path
from typing import IO

import msgspec

from waybill.agent.programs import Account, run
from waybill.agent.rules import COMMIT
from waybill.core.errors import InvalidInputError, NotFoundError, TooLargeError

FILE_LIMIT = 4 * 1024 * 1024
UNPACKER = str(Path(__file__).with_name("unpack.py"))
CONFIGURATION = {
    "protocol.allow": "never",
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.attributesFile": "/dev/null",
    "core.symlinks": "true",
    "pack.threads": "1",
    "pack.indexVersion": "2",
    "transfer.fsckObjects": "true",
    "gc.auto": "0",
    "maintenance.auto": "false",
}
ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
}
PACKS_BEFORE_REPACK = 20


class Entry(msgspec.Struct, frozen=True):
    """One file of a commit's tree."""

    mode: str
    object: str
    size: int
    path: str


class Store:
    """The objects of one repository.

    Args:
        base: Folder that holds the stores.
        repository: The server's name for the repository.
        user: Account that git runs as; None for the agent's own.
    """

    def __init__(self, base: Path, repository: str, user: Account | None) -> None:
        readable = re.sub(r"[^a-z0-9]+", "-", repository.lower()).strip("-")[:40]
        self.path = base / f"{readable}-{hashlib.sha256(repository.encode()).hexdigest()[:12]}.git"
        self.repository = repository
        self.user = user
        self._lock = asyncio.Lock()

    async def has(self, commit: str) -> bool:
        """Whether the commit is here and was checked with all that it holds."""
        return (self.path / f"refs/waybill/{_checked(commit)}").exists()

    async def fetch(self, commit: str, pack: AsyncIterator[bytes]) -> None:
        """Take a pack in and check that it completes this very commit.

        Raises:
            WaybillError: The pack is damaged, holds something malformed, or is not the whole commit.
        """
        async with self._lock:
            await self._prepare(commit)
            hint = "The server sent something else than it said; nothing of it is used."
            try:
                await self._git(
                    "index-pack", "--stdin", "--strict", "--max-input-size=8589934592", stdin=pack, hint=hint
                )
                await self._git("rev-list", "--objects", "--quiet", f"{commit}^{{commit}}", hint=hint)
            except BaseException:
                self._sweep()
                self._forget(commit)
                raise
            await self._git("update-ref", f"refs/waybill/{commit}", commit)

    async def read(self, commit: str, path: str, limit: int = FILE_LIMIT) -> bytes:
        """The bytes of one file of a commit.

        Raises:
            NotFoundError: The commit has no such file.
        """
        if path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
            raise InvalidInputError(f"{path!r} is no path inside a commit.")
        if "\n" in path:
            raise InvalidInputError(f"the path {path!r} holds a line break.")
        name = os.fsencode(f"{_checked(commit)}:{path}\n")
        head, _, content = (await self._git("cat-file", "--batch", stdin=name)).partition(b"\n")
        _, blob, size = head.rpartition(b" blob ")
        if not blob:
            raise NotFoundError(f"commit {commit[:12]} of {self.repository} has no file {path}.")
        if int(size) > limit:
            raise TooLargeError(f"{path} of commit {commit[:12]} has {int(size)} bytes, more than {limit}.")
        return content[: int(size)]

    async def entries(self, commit: str) -> list[Entry]:
        """Every file of a commit.

        Raises:
            InvalidInputError: The commit holds a submodule or a name that cannot be laid out.
        """
        listing = await self._git("ls-tree", "-r", "-z", "-l", "--full-tree", _checked(commit))
        found = []
        for row in listing.split(b"\0")[:-1]:
            about, _, path = row.partition(b"\t")
            mode, kind, name, size = about.split()
            where = os.fsdecode(path)
            if kind == b"commit":
                raise InvalidInputError(
                    f"{where} is a submodule, which is not supported yet.", "Commit its files, or build without it."
                )
            if "\n" in where:
                raise InvalidInputError(f"the name {where!r} holds a line break and cannot be laid out.")
            found.append(Entry(mode.decode(), name.decode(), int(size), where))
        return found

    async def lay_out(self, commit: str, folder: Path, user: Account | None, limit: int, extras: Sequence[str]) -> None:
        """Write the files of a commit into a new folder, durably.

        Args:
            commit: A commit that is here.
            folder: Absolute path; it does not exist yet, its parent does.
            user: Whom the files belong to.
            limit: Bytes that they may have in all.
            extras: The agent's own files (NAME=CONTENT) and links (NAME@TARGET).
        """
        wanted = b"".join(
            f"{entry.object} {entry.mode} ".encode() + os.fsencode(entry.path) + b"\n"
            for entry in await self.entries(commit)
        )
        form = "--batch=%(objectname) %(objecttype) %(objectsize) %(rest)"
        ends = os.pipe()
        with os.fdopen(ends[0], "rb") as reader, os.fdopen(ends[1], "wb") as writer:
            giving = asyncio.create_task(self._git("cat-file", "--buffer", form, stdin=wanted, stdout=writer))
            taking = asyncio.create_task(unpack("tree", folder, user, limit, extras, reader))
            try:
                await taking
                await giving
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            finally:
                giving.cancel()
                taking.cancel()
                await asyncio.gather(giving, taking, return_exceptions=True)

    async def prune(self, keep: Collection[str]) -> None:
        """Forget all commits but these, and give their space back once it is worth the work."""
        async with self._lock:
            refs = self.path / "refs/waybill"
            for ref in list(refs.iterdir()) if refs.is_dir() else []:
                if ref.name not in keep:
                    self._forget(ref.name)
            packs = list((self.path / "objects/pack").glob("*.pack"))
            if len(packs) > PACKS_BEFORE_REPACK:
                await self._git("repack", "-a", "-d", "-q")

    async def _prepare(self, commit: str) -> None:
        if not (self.path / "HEAD").exists():
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(parents=True, mode=0o700)
            if self.user:
                os.chown(self.path, self.user.uid, self.user.gid)
            kind = "sha256" if len(commit) == 64 else "sha1"
            await self._git(
                "init", "--bare", "-q", f"--object-format={kind}", "--template=", str(self.path), plain=True
            )
        self._sweep()
        self._grafts({commit} | self._grafted())

    def _sweep(self) -> None:
        """Delete what an index-pack that was cut off left behind."""
        for left in (self.path / "objects/pack").glob("tmp_*"):
            left.unlink(missing_ok=True)

    def _grafted(self) -> set[str]:
        with contextlib.suppress(FileNotFoundError):
            return set((self.path / "shallow").read_text().split())
        return set()

    def _grafts(self, commits: set[str]) -> None:
        """Say that these commits come without their history."""
        temporary = self.path / "shallow.tmp"
        temporary.unlink(missing_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(handle, "w") as file:
            file.write("".join(f"{commit}\n" for commit in sorted(commits)))
        temporary.replace(self.path / "shallow")

    def _forget(self, commit: str) -> None:
        (self.path / f"refs/waybill/{commit}").unlink(missing_ok=True)
        self._grafts(self._grafted() - {commit})

    async def _git(
        self,
        *arguments: str,
        stdin: bytes | AsyncIterator[bytes] = b"",
        stdout: IO[bytes] | None = None,
        hint: str = "",
        plain: bool = False,
    ) -> bytes:
        settings = [part for name, value in CONFIGURATION.items() for part in ("-c", f"{name}={value}")]
        where = [] if plain else [f"--git-dir={self.path}"]
        return await run(
            ["git", *settings, *where, *arguments],
            user=self.user,
            stdin=stdin,
            stdout=stdout,
            environment=ENVIRONMENT,
            hint=hint,
        )


async def unpack(
    kind: str, folder: Path, user: Account | None, limit: int, extras: Sequence[str], source: IO[bytes]
) -> None:
    """Fill a new folder from an open file; it is gone again when that fails."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o755)  # noqa: ASYNC240 - a local folder does not block
    if user:
        os.chown(folder, user.uid, user.gid)
    try:
        who = f"{user.uid}:{user.gid}" if user else "-"
        argv = [sys.executable, "-I", "-S", UNPACKER, kind, str(folder), str(limit), who, *extras]
        await run(argv, stdin=source, cwd=str(folder), title="")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _checked(commit: str) -> str:
    if not COMMIT.fullmatch(commit):
        raise InvalidInputError(f"{commit!r} is no commit id.")
    return commit
