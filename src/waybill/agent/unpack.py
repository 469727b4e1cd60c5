"""Writes a release into a fresh folder, from git objects or from a packed build; runs alone, as the service's user.

The agent starts this file by its path (``python -I -S unpack.py tree|tar FOLDER LIMIT WHO``), never imports it, so
that it starts in milliseconds, holds no key, and can be killed. Nothing is ever written outside of FOLDER: names are
checked part by part, files are created anew (``O_EXCL | O_NOFOLLOW``) below opened folders that are no links, and
links that leave FOLDER are refused. Files come out read-only.

``tree`` reads what ``git cat-file --batch='%(objectname) %(objecttype) %(objectsize) %(rest)'`` writes, with
``MODE PATH`` as the rest. ``tar`` reads a tar.gz. The bytes are git's own: attributes, filters and line ends of
``.gitattributes`` play no part.
"""

# pathlib would cost milliseconds at every start, and standard error is how it speaks to the agent:
# ruff: noqa: PTH102, PTH118, PTH120, PTH123, PTH211, T201

from __future__ import annotations

# All modules come before the change of account, which may not be allowed to look where Python lies.
import ctypes
import os
import sys
import tarfile
import zlib
from typing import IO

POINTER = b"version https://git-lfs.github.com/spec/"
ENTRIES = 1_000_000


class RefusedError(Exception):
    """The content is not one that may be laid out; the text is a sentence."""


class Writer:
    """A folder that is filled and never left.

    Args:
        root: The folder; it exists and is empty.
        limit: Bytes that may be written in all.
    """

    def __init__(self, root: str, limit: int) -> None:
        self.root = root
        self.left = limit
        self.entries = 0
        self.folders: set[str] = set()
        self.links: set[str] = set()

    def folder(self, path: str) -> None:
        """Make a folder and those above it."""
        if not path or path in self.folders:
            return
        parent, _, _ = path.rpartition("/")
        self.folder(parent)
        if path in self.links:
            raise RefusedError(f"{path} is a link and cannot hold files.")
        try:
            os.mkdir(os.path.join(self.root, path), 0o755)
        except FileExistsError:
            raise RefusedError(f"{path} is there twice.") from None
        self.folders.add(path)

    def file(self, path: str, source: IO[bytes], size: int, *, executable: bool) -> bytes:
        """Write a file of this size; returns its first bytes."""
        self.admit(path, size)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            handle = os.open(os.path.join(self.root, path), flags, 0o555 if executable else 0o444)
        except FileExistsError:
            raise RefusedError(f"{path} is there twice.") from None
        first = b""
        with os.fdopen(handle, "wb") as file:
            while size:
                chunk = source.read(min(size, 1 << 20))
                if not chunk:
                    raise RefusedError(f"{path} ends too early.")
                first = first or chunk[:1024]
                file.write(chunk)
                size -= len(chunk)
        return first

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link that stays inside."""
        self.admit(path, len(target))
        depth = 0
        for part in os.path.join(os.path.dirname(path), target).split("/"):
            depth += -1 if part == ".." else 0 if part in ("", ".") else 1
            if depth < 0:
                break
        if target.startswith("/") or "\0" in target or not target or depth < 0:
            raise RefusedError(f"the link {path} leaves the release: it points to {target!r}.")
        try:
            os.symlink(target, os.path.join(self.root, path))
        except FileExistsError:
            raise RefusedError(f"{path} is there twice.") from None
        self.links.add(path)

    def inside(self) -> None:
        """Refuse links that leave the folder by way of other links."""
        root = os.path.realpath(self.root)
        for path in self.links:
            reached = os.path.realpath(os.path.join(self.root, path))
            if os.path.commonpath([root, reached]) != root:
                raise RefusedError(f"the link {path} leaves the release by way of another link.")

    def admit(self, path: str, size: int) -> None:
        """Check a name, count it and its size, and make the folders above it."""
        parts = path.split("/")
        if len(path) > 4000 or "\0" in path or any(part in ("", ".", "..") for part in parts):
            raise RefusedError(f"{path!r} is no path inside a release.")
        self.entries += 1
        self.left -= size
        if self.left < 0 or self.entries > ENTRIES:
            raise RefusedError("the release is larger than this host accepts.")
        self.folder("/".join(parts[:-1]))


def from_tree(writer: Writer, source: IO[bytes]) -> None:
    """Lay out git objects."""
    pointers: list[str] = []
    lfs = False
    while header := source.readline(16 * 1024):
        name, kind, size, mode, path = header.rstrip(b"\n").split(b" ", 4)
        where = os.fsdecode(path)
        if kind != b"blob":
            raise RefusedError(f"{where}: the object {name.decode()} is missing or no file.")
        length = int(size)
        if mode == b"120000":
            if length > 4000:
                raise RefusedError(f"the link {where} is too long.")
            writer.link(where, os.fsdecode(source.read(length)))
        else:
            first = writer.file(where, source, length, executable=mode == b"100755")
            if first.startswith(POINTER):
                pointers.append(where)
            if where.rpartition("/")[2] == ".gitattributes":
                with open(os.path.join(writer.root, where), "rb") as file:
                    lfs = lfs or b"filter=lfs" in file.read(1 << 20)
        source.read(1)
    if lfs and pointers:
        raise RefusedError(f"{pointers[0]} is kept in git LFS, which is not supported yet; commit the file itself.")


def from_tar(writer: Writer, source: IO[bytes]) -> None:
    """Lay out a packed build."""
    with tarfile.open(fileobj=source, mode="r|gz") as archive:
        for member in archive:
            path = member.name.removeprefix("./").rstrip("/")
            if member.isdir():
                if path not in ("", "."):
                    writer.admit(f"{path}/x", 0)  # the folder of a file that is not there
            elif member.isreg():
                content = archive.extractfile(member)
                assert content is not None  # noqa: S101  tarfile hands one out for every regular file
                writer.file(path, content, member.size, executable=bool(member.mode & 0o100))
            elif member.issym():
                writer.link(path, member.linkname)
            else:
                raise RefusedError(f"{path} is neither file, folder nor symbolic link.")


def sync(root: str) -> None:
    """Make all that was written durable, in one call for the whole file system where there is one."""
    handle = os.open(root, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle) != 0:
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        os.close(handle)


def become(who: str) -> None:
    """Be this ``UID:GID`` for good, before anything is read; ``-`` stays who it is.

    It is done here and not by whoever starts it, since Python itself may lie where that account cannot look.
    """
    if who != "-":
        uid, gid = map(int, who.split(":"))
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)


def main(kind: str, root: str, limit: str, who: str, *extras: str) -> int:
    """Fill the folder; ``extras`` are NAME=CONTENT files and NAME@TARGET links of the agent's own."""
    become(who)
    os.umask(0o022)
    writer = Writer(root, int(limit))
    try:
        (from_tree if kind == "tree" else from_tar)(writer, sys.stdin.buffer)
        writer.inside()
        for extra in extras:
            name, sign, content = extra.partition("=")
            path = os.path.join(root, name)
            if os.path.lexists(path):
                continue
            if sign:
                with open(path, "x") as file:
                    file.write(content)
            else:
                name, _, target = extra.partition("@")
                os.symlink(target, os.path.join(root, name))
        sync(root)
    except RefusedError as error:
        print(error, file=sys.stderr)
        return 65
    except OSError as error:
        print(f"{error.strerror}: {error.filename or root}", file=sys.stderr)
        return 74
    except (tarfile.TarError, zlib.error, EOFError, ValueError) as error:
        print(f"the packed content is damaged: {error}", file=sys.stderr)
        return 65
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
