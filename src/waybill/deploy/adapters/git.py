"""The server's mirrors of repositories: bare, fetched from the forge, read by commit.

Fetching and packing run git as a program, with a configuration of our own and nobody else's: no hooks, no prompts, no
credential helpers, objects checked on arrival. A credential reaches it by its environment or a key file, never by an
argument. What was fetched is read in this process with libgit2, since a push reads a dozen times and a program each
time would be most of what a deployment takes.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pygit2

from waybill.core.errors import InvalidInputError, NotFoundError, TooLargeError, UnavailableError
from waybill.deploy.model import Repository
from waybill.infra.keys import Keys

T = TypeVar("T")
TIMEOUT = 120.0
BLOB_LIMIT = 16 * 1024**2
_CONFIG = """\
[safe]
	directory = *
[transfer]
	fsckObjects = true
[fetch]
	fsckObjects = true
	recurseSubmodules = false
[core]
	hooksPath = /dev/null
	fsmonitor = false
	pager = cat
[gc]
	auto = 0
[maintenance]
	auto = false
[credential]
	helper =
[protocol]
	allow = never
[protocol "file"]
	allow = always
[protocol "https"]
	allow = always
[protocol "http"]
	allow = always
[protocol "ssh"]
	allow = always
"""
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_ADDRESS = re.compile(r"(?:https?|ssh|file)://[^\s\x00-\x1f]+|/[^\s\x00-\x1f]+|[\w.-]+@[\w.-]+:[^\s\x00-\x1f]+")


class Mirrors:
    """All mirrors of a server.

    Args:
        folder: The data folder; mirrors stand in ``mirrors/``, packs for hosts in ``packs/``.
        keys: Credentials: ``repo-<id>.ssh`` (private key), ``repo-<id>.hosts`` (pinned known_hosts),
            ``repo-<id>.token`` (sent as HTTP basic password).
    """

    def __init__(self, folder: Path, keys: Keys) -> None:
        self._folder = folder / "mirrors"
        self._packs = folder / "packs"
        for made in (self._folder, self._packs):
            made.mkdir(parents=True, exist_ok=True)
        self._keys = keys
        self._config = folder / "git.config"
        if not self._config.exists() or self._config.read_text() != _CONFIG:
            self._config.write_text(_CONFIG)
        self._packing: dict[str, asyncio.Lock] = {}
        self._fetching: dict[str, asyncio.Lock] = {}
        self._sound: set[Path] = set()
        # Should this process be killed, its git is told to end, and takes its locks away.
        self._tied = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []

    async def fetch(self, repository: Repository) -> dict[str, str]:
        """Bring the mirror up to date; returns branch → commit.

        Raises:
            UnavailableError: The repository cannot be reached, or refuses us.
        """
        heads = "+refs/heads/*:refs/heads/*"
        command = ["fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--force"]
        async with self._fetching.setdefault(repository.name, asyncio.Lock()):
            mirror = await self._mirror(repository.name)
            await self._git([*command, check_address(repository.url), heads], mirror, repository.name)
            return await self._read(repository.name, _heads)

    async def remote_heads(self, repository: Repository) -> dict[str, str]:
        """Branch → commit as the repository itself says, without fetching."""
        mirror = await self._mirror(repository.name)
        command = ["ls-remote", "--heads", "--quiet", check_address(repository.url)]
        listing = await self._git(command, mirror, repository.name)
        pairs = (line.partition("\t") for line in _lines(listing))
        return {name.removeprefix("refs/heads/"): commit for commit, _, name in pairs}

    async def files(self, repository: str, commit: str) -> list[str]:
        """Paths of all files of a commit."""

        def walk(opened: pygit2.Repository) -> list[str]:
            return list(_walk(_tree(opened, commit), ""))

        return await self._read(repository, walk)

    async def blob(self, repository: str, commit: str, path: str) -> bytes:
        """A file of a commit.

        Raises:
            NotFoundError: The commit has no such file.
            TooLargeError: It is over 16 MiB.
        """

        def read(opened: pygit2.Repository) -> bytes:
            try:
                found = _tree(opened, commit)[path]
            except (KeyError, ValueError):
                found = None
            if not isinstance(found, pygit2.Blob):
                raise NotFoundError(f"{repository} has no file {path} at {commit[:12]}.")
            if found.size > BLOB_LIMIT:
                raise TooLargeError(f"{path} at {commit[:12]} has {found.size} bytes; 16 MiB are allowed.")
            return found.data

        return await self._read(repository, read)

    async def changed(self, repository: str, before: str, after: str) -> list[str] | None:
        """Paths that differ between two commits; None when that cannot be told, since ``before`` is gone."""

        def compare(opened: pygit2.Repository) -> list[str]:
            deltas = _tree(opened, before).diff_to_tree(_tree(opened, after)).deltas
            return sorted({path for delta in deltas for path in (delta.old_file.path, delta.new_file.path)})

        try:
            return await self._read(repository, compare)
        except NotFoundError:
            return None

    async def descends(self, repository: str, ancestor: str, commit: str) -> bool:
        """Whether ``commit`` builds on ``ancestor`` or is it; False after a forced push."""

        def look(opened: pygit2.Repository) -> bool:
            _tree(opened, ancestor)
            return ancestor == commit or opened.descendant_of(_commit(commit), ancestor)

        try:
            return await self._read(repository, look)
        except NotFoundError:
            return False

    async def resolve(self, repository: str, ref: str) -> str:
        """The full id of a branch head or (abbreviated) commit."""
        if not re.fullmatch(r"[\w][\w./-]{0,300}", ref) or ".." in ref:
            raise InvalidInputError(f"{ref!r} is no branch or commit.")

        def look(opened: pygit2.Repository) -> str:
            for name in (f"refs/heads/{ref}", ref):
                try:
                    return str(opened.revparse_single(name).peel(pygit2.Commit).id)
                except (KeyError, ValueError, pygit2.GitError):
                    continue
            raise NotFoundError(f"{repository} has no branch or commit {ref!r} in the mirror.", "Was it pushed?")

        return await self._read(repository, look)

    async def pack(self, repository: str, commit: str) -> Path:
        """A pack of exactly one commit: itself, its trees and its files; made once, then served as it is.

        Raises:
            NotFoundError: The mirror does not hold the commit.
        """
        target = self._packs / f"{_identity(repository)}-{_commit(commit)}.pack"
        if target.exists():
            return target
        async with self._packing.setdefault(target.name, asyncio.Lock()):
            if not target.exists():
                mirror = self._path(repository)
                await self._read(repository, lambda opened: _tree(opened, commit))
                objects = await self._git(["rev-list", "--objects", "--no-walk", commit], mirror)
                ids = b"".join(line.split(b" ", 1)[0] + b"\n" for line in objects.splitlines())
                packed = await self._git(["pack-objects", "--stdout", "--quiet", "--threads=1"], mirror, stdin=ids)
                temporary = target.with_suffix(f".{os.getpid()}")
                await asyncio.to_thread(temporary.write_bytes, packed)
                temporary.replace(target)
        self._packing.pop(target.name, None)
        return target

    def forget_packs(self, keep: int = 50) -> None:
        """Drop all but the newest packs; they are made again when asked for."""
        packs = sorted(self._packs.glob("*.pack"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in packs[keep:]:
            path.unlink(missing_ok=True)

    def credential(self, repository: str, kind: str) -> str:
        """Name of the key of a repository's credential; ``kind`` is ``ssh``, ``hosts`` or ``token``."""
        return f"repo-{_identity(repository)}.{kind}"

    def _path(self, repository: str) -> Path:
        return self._folder / f"{_identity(repository)}.git"

    async def _read(self, repository: str, function: Callable[[pygit2.Repository], T]) -> T:
        """Read a mirror in a thread; opened anew each time, since a fetch may have added packs."""

        def run() -> T:
            try:
                opened = pygit2.Repository(str(self._path(repository)), pygit2.enums.RepositoryOpenFlag.BARE)
            except pygit2.GitError as error:
                raise NotFoundError(f"there is no mirror of {repository} yet.", "Was the repository added?") from error
            try:
                return function(opened)
            finally:
                opened.free()

        return await asyncio.to_thread(run)

    async def _mirror(self, repository: str) -> Path:
        path = self._path(repository)
        if not (path / "HEAD").exists():
            await self._git(["init", "--quiet", "--bare", str(path)], self._folder)
        if path not in self._sound:
            await asyncio.to_thread(_unlock, path)
            self._sound.add(path)
        return path

    async def _git(
        self, arguments: Sequence[str], cwd: Path, credential: str | None = None, stdin: bytes | None = None
    ) -> bytes:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._tied,
                "git",
                *arguments,
                cwd=cwd,
                env=self._environment(credential),
                stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no mirror at {cwd.name}, or no git here.") from error
        try:
            async with asyncio.timeout(TIMEOUT):
                output, complaint = await process.communicate(stdin)
        except BaseException as error:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
                self._sound.discard(cwd)
            if isinstance(error, TimeoutError):
                raise UnavailableError(f"git {arguments[0]} took over {TIMEOUT:.0f} s.") from error
            raise
        if process.returncode:
            raise UnavailableError(f"git {arguments[0]} failed: {_complaint(complaint)}")
        return output

    def _environment(self, repository: str | None) -> dict[str, str]:
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": str(self._folder),
            "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(self._config),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_OPTIONAL_LOCKS": "0",
        }
        for name in ("SSL_CERT_FILE", "GIT_SSL_CAINFO", "https_proxy", "no_proxy"):
            if name in os.environ:
                environment[name] = os.environ[name]
        if repository is None:
            return environment
        key, hosts = (self._keys.path(self.credential(repository, kind)) for kind in ("ssh", "hosts"))
        ssh = [
            "ssh",
            "-F",
            "/dev/null",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "ConnectTimeout=15",
        ]
        ssh += ["-o", f"UserKnownHostsFile={hosts}", "-o", "GlobalKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes"]
        ssh += ["-i", str(key)] if key.exists() else []
        environment["GIT_SSH_COMMAND"] = " ".join(f"'{part}'" for part in ssh)
        token = self._keys.get(self.credential(repository, "token"))
        if token is not None:
            basic = base64.b64encode(b"oauth2:" + token.strip()).decode()
            environment |= {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "http.extraHeader",
                "GIT_CONFIG_VALUE_0": f"Authorization: Basic {basic}",
            }
        return environment


def check_address(url: str) -> str:
    """The address of a repository, if git may be given it.

    Raises:
        InvalidInputError: It is no https, ssh, file or scp-like address, or it holds a credential.
    """
    if not _ADDRESS.fullmatch(url) or url.startswith("-"):
        raise InvalidInputError(f"{url!r} is no address of a repository.", "https, ssh or an absolute path is.")
    if re.match(r"https?://[^/@]*:[^/@]*@", url):
        raise InvalidInputError(
            "the address of a repository must hold no credential.", "Give it apart: --token-file or --deploy-key."
        )
    return url


def _unlock(mirror: Path) -> None:
    """Take away what a git left that was cut off by SIGKILL or a power cut: its locks would refuse all that follow."""
    for pattern in ("*.lock", "refs/**/*.lock", "objects/pack/tmp_*"):
        for left in mirror.glob(pattern):
            left.unlink(missing_ok=True)


def _identity(repository: str) -> str:
    return hashlib.sha256(repository.encode()).hexdigest()[:24]


def _commit(text: str) -> str:
    if not _COMMIT.fullmatch(text):
        raise InvalidInputError(f"{text!r} is no full commit id.")
    return text


def _heads(opened: pygit2.Repository) -> dict[str, str]:
    names = [name for name in opened.references if name.startswith("refs/heads/")]
    return {name.removeprefix("refs/heads/"): str(opened.references[name].resolve().target) for name in names}


def _tree(opened: pygit2.Repository, commit: str) -> pygit2.Tree:
    try:
        return opened[_commit(commit)].peel(pygit2.Tree)
    except (KeyError, ValueError, pygit2.GitError) as error:
        raise NotFoundError(f"the commit {commit[:12]} is gone.", "Was it removed by a forced push?") from error


def _walk(tree: pygit2.Tree, folder: str) -> Iterator[str]:
    for entry in tree:
        if isinstance(entry, pygit2.Tree):
            yield from _walk(entry, f"{folder}{entry.name}/")
        elif isinstance(entry, pygit2.Blob):
            yield f"{folder}{entry.name}"


def _lines(output: bytes) -> list[str]:
    return output.decode(errors="replace").splitlines()


def _complaint(output: bytes) -> str:
    text = " ".join(output.decode(errors="replace").split())
    return re.sub(r"(?<=://)[^/\s@]+@", "", text)[:500] or "it said nothing"
