"""Builds on a host labelled ``build``: a commit goes in, one packed result comes out, the same bytes every time.

An order is on disk until its outcome was handed over, so a build survives the agent. The command runs unprivileged in
a fresh folder, with a time limit, and what it left is packed without times, owners or order of its own.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
import random
import shutil
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from waybill.agent.converge import Perform
from waybill.agent.link import Link
from waybill.agent.placing import RELEASE_LIMIT, Placer
from waybill.agent.programs import run
from waybill.agent.state import Home, read, write
from waybill.core.errors import InvalidInputError, NotFoundError, TooLargeError, UnavailableError, WaybillError
from waybill.deploy.servicefile import Build
from waybill.drivers import model
from waybill.wire.agent import BuildOrder

log = logging.getLogger("waybill.agent")
BUILDER = "waybill-build"


class BuildFailedError(WaybillError):
    """The build command did not do what it should.

    Attributes:
        output: The end of what it wrote.
    """

    def __init__(self, reason: str, output: str) -> None:
        super().__init__(reason)
        self.output = output


class Builder:
    """Works on build orders, one at a time.

    Args:
        home: The agent's folder.
        placer: Fetches commits.
        perform: Performs the build command.
        link: Takes the outcome.
    """

    def __init__(self, home: Home, placer: Placer, perform: Perform, link: Link) -> None:
        self._home = home
        self._placer = placer
        self._perform = perform
        self._link = link
        self._changed = asyncio.Event()

    def accept(self, order: BuildOrder) -> None:
        """Store an order; it is worked on until its outcome is handed over."""
        if not order.id.replace("-", "").isalnum():
            raise InvalidInputError(f"{order.id!r} is no id of a build order.")
        write(self._home.builds / f"{order.id}.json", msgspec.json.encode(order))
        self._changed.set()

    async def run(self) -> None:
        """Work for ever; cancelled at the end."""
        while True:
            self._changed.clear()
            waiting = sorted(self._home.builds.glob("*.json")) if self._home.builds.is_dir() else []
            for path in waiting:
                order = read(path, BuildOrder)
                if order:
                    await self._handle(order)
                    path.unlink(missing_ok=True)
            if not waiting:
                await self._changed.wait()

    async def _handle(self, order: BuildOrder) -> None:
        """Build and hand over, as often as it takes until the server has the outcome."""
        while True:
            try:
                await self._once(order)
            except UnavailableError as error:
                log.info("build %s waits: %s", order.id, error)
                await asyncio.sleep(random.uniform(0.5, 5.0))  # noqa: S311 - spreads load, guards nothing
            except WaybillError as error:
                log.warning("build %s was not accepted: %s", order.id, error)
                return
            else:
                return

    async def _once(self, order: BuildOrder) -> None:
        folder = self._home.work / f"build-{order.id}"
        packed = self._home.work / f"build-{order.id}.tar.gz"
        try:
            if not packed.exists():
                await self._build(order, folder, packed)
        except UnavailableError:
            raise
        except (WaybillError, OSError) as error:
            reason = str(error) if isinstance(error, WaybillError) else f"{error.strerror or error}."
            await self._link.build_failed(order.id, reason, getattr(error, "output", ""))
            packed.unlink(missing_ok=True)
            return
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        await self._link.upload(order.id, packed)
        packed.unlink(missing_ok=True)

    async def _build(self, order: BuildOrder, folder: Path, packed: Path) -> None:
        from waybill.deploy.servicefile_parse import parse

        store = await self._placer.fetch(order.repository, order.commit, order.file)
        service = parse(await store.read(order.commit, order.file), order.file)
        if service.build is None:
            raise NotFoundError(f"{order.file} of commit {order.commit[:12]} has no build.")
        user = self._placer.account(BUILDER)
        self._home.work.mkdir(parents=True, exist_ok=True, mode=0o711)
        await store.lay_out(order.commit, folder, user, RELEASE_LIMIT, [])
        where = folder / Path(order.file).parent
        await run(["chmod", "-R", "u+w", "--", str(folder)], user=user)
        environment = {
            "WAYBILL_SERVICE": order.service,
            "WAYBILL_COMMIT": order.commit,
            "CI": "true",
            "HOME": str(folder),
        }
        result = await self._perform(
            model.Run(
                argv=service.build.command,
                cwd=str(where),
                user=user.name if user else None,
                environment=environment,
                timeout=service.build.timeout,
            )
        )
        if not result.ok:
            raise BuildFailedError(f"the build command failed: {result.reason}", result.output)
        await asyncio.to_thread(pack, where, service.build, packed)


class _Limit:
    """A file that refuses to grow over a limit."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file = file
        self._left = limit
        self._limit = limit

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise TooLargeError(
                f"the packed build is larger than {self._limit} bytes.", "Raise build.limit, or ship less."
            )
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def pack(where: Path, build: Build, packed: Path) -> None:
    """Pack a build's output, deterministically.

    Raises:
        NotFoundError: The command left no output.
        TooLargeError: The packed result is over the limit of the service file.
        InvalidInputError: The output holds a device, or lies outside.
    """
    output = where / build.output
    if not output.exists():
        raise NotFoundError(f"the build command left no {build.output}.", "build.output names what is packed.")
    if not output.resolve().is_relative_to(where.resolve()):
        raise InvalidInputError(f"{build.output} lies outside of the build folder.")
    temporary = packed.with_suffix(".tmp")
    with temporary.open("wb") as file:
        capped = _Limit(file, build.limit)
        with (
            gzip.GzipFile(filename="", mode="wb", fileobj=capped, mtime=0, compresslevel=6) as squeezed,
            tarfile.open(fileobj=squeezed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            for path, name in _entries(output.resolve()):
                _add(archive, path, name)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(packed)


def _entries(output: Path) -> Iterator[tuple[Path, str]]:
    if not output.is_dir():
        yield output, output.name
        return
    found = []
    for base, folders, files in os.walk(output):
        found += [Path(base, name) for name in (*folders, *files)]
    for path in sorted(found, key=lambda path: str(path.relative_to(output)).encode()):
        yield path, str(path.relative_to(output))


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    about = path.lstat()
    entry = tarfile.TarInfo(name)
    if stat.S_ISLNK(about.st_mode):
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
        archive.addfile(entry)
    elif stat.S_ISDIR(about.st_mode):
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(entry)
    elif stat.S_ISREG(about.st_mode):
        entry.mode = 0o755 if about.st_mode & 0o100 else 0o644
        entry.size = about.st_size
        with path.open("rb") as file:
            archive.addfile(entry, file)
    else:
        raise InvalidInputError(f"{name} in the build's output is neither file, folder nor symbolic link.")
