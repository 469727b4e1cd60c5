"""Which files there are to read, in which order, and how each is opened.

Compressed files are known by their first bytes, not by their names. A log and what it was rotated into make a series,
read from the oldest to the newest, so that a report which was cut by the rotation is whole again.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import lzma
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

SAMPLE = 4096
ROTATED = re.compile(
    r"^(?P<base>.+?)(?:[.-](?P<number>\d{1,2})|[.-](?P<date>\d{4}-?\d\d-?\d\d(?:[-T_.]?\d\d[-:]?\d\d(?:[-:]?\d\d)?"
    r"|-\d{10})?))?(?:\.(?:gz|xz|bz2|zst))?$"
)
"""Names as logrotate and its like make them; longer numbers are process ids (GORACE=log_path)."""
MAGIC = {b"\x1f\x8b": "gz", b"\xfd7zXZ\x00": "xz", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zst"}


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A file to read.

    Attributes:
        path: Where it is.
        device: Of its file system.
        inode: Its number there.
        size: Bytes, as stored.
        changed: Nanoseconds since 1970.
        kind: ``plain``, ``gz``, ``xz``, ``bz2``, ``zst``.
        head: Its first bytes, decompressed.
    """

    path: Path
    device: int
    inode: int
    size: int
    changed: int
    kind: str
    head: bytes


class Skipped(msgspec.Struct, frozen=True):
    """A file that was not read, or not to its end."""

    path: str
    reason: str


def members(paths: Iterable[Path], skipped: list[Skipped]) -> list[Member]:
    """The files that these paths name or hold, each once; what cannot be read is added to ``skipped``."""
    found: dict[tuple[int, int], Member] = {}
    for path in paths:
        for file in _files(path, skipped):
            try:
                member = _member(file)
            except OSError as error:
                skipped.append(Skipped(str(file), error.strerror or str(error)))
                continue
            except Unreadable as error:
                skipped.append(Skipped(str(file), str(error)))
                continue
            found.setdefault((member.device, member.inode), member)
    names = {str(member.path) for member in found.values() if member.kind == "plain"}
    kept = []
    for member in found.values():
        if member.kind != "plain" and str(member.path.with_suffix("")) in names:
            skipped.append(Skipped(str(member.path), "its uncompressed copy is read"))
        else:
            kept.append(member)
    return kept


class Unreadable(Exception):  # noqa: N818 - says why a file is passed over, and never leaves this package
    """Why a file is not read."""


def series(found: Iterable[Member]) -> list[list[Member]]:
    """The files by the log that they come from, each from the oldest to the newest."""
    groups: dict[str, list[tuple[tuple[int, str, int], Member]]] = {}
    for member in found:
        match = ROTATED.match(member.path.name)
        base, number, date = (match["base"], match["number"], match["date"]) if match else (member.path.name, "", "")
        order = (0, date, 0) if date else (1, "", -int(number)) if number else (2, "", 0)
        groups.setdefault(str(member.path.parent / base), []).append((order, member))
    return [[member for _, member in sorted(group, key=lambda pair: pair[0])] for _, group in sorted(groups.items())]


@contextmanager
def opened(member: Member, counted: Callable[[int], None]) -> Iterator[Any]:
    """The decompressed bytes of a file, as a stream.

    Args:
        member: Which one.
        counted: Told of bytes as they are read from the disk.
    """
    with member.path.open("rb", buffering=0) as file, closing(_decompressed(Counted(file, counted), member.kind)) as it:
        yield it


class Counted:
    """A file that tells how much of it was read."""

    def __init__(self, file: Any, counted: Callable[[int], None]) -> None:
        self._file = file
        self._counted = counted

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes."""
        data: bytes = self._file.read(size)
        self._counted(len(data))
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to an offset."""
        place: int = self._file.seek(offset, whence)
        return place

    def tell(self) -> int:
        """Where it stands."""
        place: int = self._file.tell()
        return place

    def seekable(self) -> bool:
        """Files are."""
        return True

    def readable(self) -> bool:
        """Files are."""
        return True

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return bool(self._file.closed)

    def close(self) -> None:
        """Close it."""
        self._file.close()


def _files(path: Path, skipped: list[Skipped]) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return

    def tell(error: OSError) -> None:
        skipped.append(Skipped(str(error.filename), error.strerror or str(error)))

    for folder, folders, names in os.walk(path, onerror=tell):
        folders.sort()
        for name in sorted(names):
            yield Path(folder, name)


def _member(path: Path) -> Member:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not make it wait
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        told = os.fstat(file.fileno())
        if not stat.S_ISREG(told.st_mode):
            raise Unreadable("no regular file")
        head = file.read(SAMPLE)
        kind = next((name for magic, name in MAGIC.items() if head.startswith(magic)), "plain")
        if kind != "plain":
            file.seek(0)
            head = _sample(file, kind)
    if head.startswith(b"LPKSHHRH"):
        raise Unreadable("a journal in its own form: read it with journalctl -o export, and pipe that")
    if b"\0" in head.lstrip(b"\0"):  # a log that was emptied under a running program begins with zeros
        raise Unreadable("binary")
    return Member(
        path=path,
        device=told.st_dev,
        inode=told.st_ino,
        size=told.st_size,
        changed=told.st_mtime_ns,
        kind=kind,
        head=head,
    )


def _sample(file: BinaryIO, kind: str) -> bytes:
    stream = _decompressed(file, kind)
    try:
        return bytes(stream.read1(SAMPLE))
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"damaged: {error or type(error).__name__}") from error


def _decompressed(file: Any, kind: str) -> Any:
    if kind == "gz":
        return gzip.GzipFile(fileobj=file, mode="rb")
    if kind == "xz":
        return lzma.LZMAFile(file)
    if kind == "bz2":
        return bz2.BZ2File(file)
    if kind == "zst":
        return _zstandard(file)
    return file


def _zstandard(file: Any) -> Any:
    for name in ("compression.zstd", "backports.zstd"):  # of Python 3.14 and later; for the ones before
        try:
            return importlib.import_module(name).ZstdFile(file)
        except ModuleNotFoundError:
            continue
    raise Unreadable("zstd, which needs the package backports.zstd")
