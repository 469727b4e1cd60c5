"""From a manifest to a release on disk: fetch, check, lay out; never a half-written one.

The service file and the locked file are read from the git objects of the pinned commit, which were checked when they
came, not from the release folder, which belongs to the service's own account.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import posixpath
import shutil
import socket
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import IO, Protocol

import msgspec

from waybill.agent.objects import Store, unpack
from waybill.agent.programs import Account, account, run
from waybill.agent.state import Attempt, Folder, Home, Placed, Told, sync_folder
from waybill.core import canonical, clock
from waybill.core.errors import InvalidInputError, WaybillError
from waybill.core.plugins import Plugins
from waybill.deploy.servicefile import Environment, ServiceFile
from waybill.drivers import redirect
from waybill.drivers.model import Driver, Release
from waybill.trust.manifest import Manifest

KEEP = 5
RELEASE_LIMIT = 8 * 1024**3
FETCHER = "waybill-fetch"
REMEMBERED = 8
"""Service files that stay parsed: each step of a deployment asks for the same one."""
_read: dict[tuple[str, str, str], ServiceFile] = {}


class Source(Protocol):
    """Where commits and builds come from."""

    async def pack(self, repository: str, commit: str, file: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The git pack of a commit."""
        ...

    async def build(self, digest: str, target: IO[bytes]) -> None:
        """Write a packed build into a file, checked."""
        ...


@functools.cache
def drivers() -> Plugins[Driver]:
    """The drivers of this installation."""
    return Plugins("waybill.drivers", "DRIVER")


def service_user(service: str) -> str:
    """Name of the account of a service."""
    name = f"wb-{service}"
    return name if len(name) <= 31 else f"{name[:22]}-{hashlib.sha256(service.encode()).hexdigest()[:8]}"


def new_release(manifest: Manifest) -> str:
    """A fresh name: ``<UTC stamp>-<commit, 12 digits>``."""
    return f"{clock.now():%Y%m%dT%H%M%S%f}"[:18] + f"Z-{manifest.commit[:12]}"


class Placer:
    """Lays releases out below the agent's folder.

    Args:
        home: The agent's folder.
        source: Where commits and builds come from.
    """

    def __init__(self, home: Home, source: Source) -> None:
        self._home = home
        self._accounts = os.geteuid() == 0 and home.config().accounts
        self._source = source
        self._stores: dict[str, Store] = {}

    def account(self, name: str) -> Account | None:
        """The account of this name; None where everything runs as the agent itself."""
        return account(name) if self._accounts else None

    def store(self, repository: str) -> Store:
        """The git objects of a repository."""
        if repository not in self._stores:
            user = self.account(FETCHER)
            self._home.objects.mkdir(parents=True, exist_ok=True, mode=0o711)
            self._stores[repository] = Store(self._home.objects, repository, user)
        return self._stores[repository]

    async def fetch(self, repository: str, commit: str, file: str) -> Store:
        """Have a commit in its store."""
        store = self.store(repository)
        if not await store.has(commit):
            async with await self._source.pack(repository, commit, file) as chunks:
                await store.fetch(commit, chunks)
        return store

    async def place(self, folder: Folder, manifest: Manifest, told: Told, attempt: Attempt) -> Placed:
        """Lay the release out, or find it laid out already.

        Raises:
            InvalidInputError: What the commit says cannot be run here.
            WaybillError: It could not be fetched or written.
        """
        store = await self.fetch(manifest.repository, manifest.commit, manifest.file)
        service = await read_service(store, manifest)
        environment = service.environments[manifest.environment]
        await _check_locked(store, manifest, environment)
        user = self.account(service_user(manifest.service))
        target = folder.releases / attempt.release
        if not target.exists():
            await self._lay_out(folder, manifest, store, user, target)
        root = target if manifest.build else target / posixpath.dirname(manifest.file)
        driver = drivers()[environment.run.driver]
        release = Release(
            key=manifest.key,
            id=attempt.release,
            sequence=manifest.sequence,
            commit=manifest.commit,
            root=str(root),
            state=str(folder.path),
            user=user.name if user else None,
            command=environment.run.command,
            environment={
                "WAYBILL_SERVICE": manifest.service,
                "WAYBILL_ENVIRONMENT": manifest.environment,
                "WAYBILL_COMMIT": manifest.commit,
                "WAYBILL_RELEASE": attempt.release,
            },
            secrets=str(secrets_file(self._home, folder, attempt.release)) if environment.variables else None,
            port=environment.run.port,
            slot=free_slot(self._taken()) if driver.traffic == "redirect" and environment.run.port else 0,
            health=environment.health,
            drain=environment.run.drain,
            address=self._home.config().address,
            options=environment.run.options,
        )
        return Placed(
            manifest=manifest,
            driver=environment.run.driver,
            release=release,
            sealed=told.sealed,
            variables=environment.variables,
        )

    async def place_again(self, folder: Folder, placed: Placed, attempt: Attempt) -> Placed:
        """Lay a release that is on this host already out once more, under a name of its own.

        A fresh name keeps it apart from its first life, which may still be draining.
        """
        old, target = folder.releases / placed.release.id, folder.releases / attempt.release
        if not target.exists():
            _make_folders(folder, self.account(service_user(folder.service)))
            temporary = folder.releases / f".tmp-{target.name}"
            await run(["cp", "-a", "--reflink=auto", "--", str(old), str(temporary)])
            await run(["sync", "-f", str(temporary)])
            temporary.rename(target)
            sync_folder(folder.releases)
        release = placed.release
        inner = Path(release.root).relative_to(old)
        return msgspec.structs.replace(
            placed,
            release=msgspec.structs.replace(
                release,
                id=attempt.release,
                root=str(target / inner),
                environment=release.environment | {"WAYBILL_RELEASE": attempt.release},
                secrets=str(secrets_file(self._home, folder, attempt.release)) if release.secrets else None,
                slot=free_slot(self._taken()) if release.slot else 0,
            ),
        )

    async def _lay_out(
        self, folder: Folder, manifest: Manifest, store: Store, user: Account | None, target: Path
    ) -> None:
        _make_folders(folder, user)
        temporary = folder.releases / f".tmp-{target.name}"
        extras = [f"REVISION={manifest.commit}\n", "shared@../../shared"]
        if manifest.build:
            self._home.work.mkdir(parents=True, exist_ok=True, mode=0o700)
            packed = self._home.work / f"{manifest.build.removeprefix('sha256:')}-{folder.path.name}.tar.gz"
            try:
                with packed.open("wb") as file:
                    await self._source.build(manifest.build, file)
                await unpack("tar", temporary, user, RELEASE_LIMIT, extras, packed.open("rb"))
            finally:
                packed.unlink(missing_ok=True)
        else:
            await store.lay_out(manifest.commit, temporary, user, RELEASE_LIMIT, extras)
        temporary.rename(target)
        sync_folder(folder.releases)
        with (folder.path / "revisions.log").open("a") as file:
            file.write(
                f"{clock.stamp()} {target.name} sequence {manifest.sequence} commit {manifest.commit} laid out\n"
            )

    def _taken(self) -> set[int]:
        taken: set[int] = set()
        for folder in self._home.services():
            live, attempt = folder.live(), folder.attempt()
            placed = [live.placed, live.previous, *live.retiring] if live else []
            if attempt and not attempt.cleared:
                placed.append(attempt.placed)
            taken |= {one.release.slot for one in placed if one}
        return taken


async def read_service(store: Store, manifest: Manifest) -> ServiceFile:
    """The service file at the pinned commit, checked against the manifest."""
    place = (store.repository, manifest.commit, manifest.file)
    service = _read.get(place)
    if service is None:
        from waybill.deploy.servicefile_parse import parse

        service = parse(await store.read(manifest.commit, manifest.file), manifest.file)
        if len(_read) >= REMEMBERED:
            _read.pop(next(iter(_read)))
        _read[place] = service
    at = f"{manifest.file} of commit {manifest.commit[:12]}"
    if service.service != manifest.service:
        raise InvalidInputError(f"{at} is of the service {service.service!r}, not {manifest.service!r}.")
    if manifest.environment not in service.environments:
        known = ", ".join(service.environments)
        raise InvalidInputError(f"{at} has no environment {manifest.environment!r}.", f"It has: {known}.")
    return service


async def _check_locked(store: Store, manifest: Manifest, environment: Environment) -> None:
    if environment.variables is None and manifest.locked is None:
        return
    if environment.variables is None or manifest.locked is None:
        raise InvalidInputError(
            f"manifest and {manifest.file} disagree on whether {manifest.environment} has locked variables."
        )
    found = canonical.digest(await store.read(manifest.commit, environment.variables))
    if found != manifest.locked:
        raise InvalidInputError(
            f"{environment.variables} of commit {manifest.commit[:12]} is not the locked file that the manifest names."
        )


def secrets_file(home: Home, folder: Folder, release: str) -> Path:
    """Where the decrypted variables of a release are put: in memory only, gone with a reboot."""
    if os.geteuid() == 0 and home.root == Path("/var/lib/waybill-agent"):
        base = Path("/run/waybill")
    else:
        own = os.environ.get("XDG_RUNTIME_DIR") or ("/dev/shm" if os.path.ismount("/dev/shm") else "")  # noqa: S108, PTH
        if not own:
            raise WaybillError("there is no folder in memory for decrypted variables.", "Set XDG_RUNTIME_DIR.")
        mark = hashlib.sha256(str(home.root.resolve()).encode()).hexdigest()[:12]
        base = Path(own) / f"waybill-{os.geteuid()}-{mark}"
    return base / f"{folder.path.name}.{release}.env"


def free_slot(taken: Collection[int]) -> int:
    """A loopback port for a version of its own, that no version has and nobody listens on."""
    used = set(taken)
    while True:
        slot = redirect.allocate(used, max(used, default=0))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", slot))
            return slot
        used.add(slot)


def prune(folder: Folder, keep: Collection[str]) -> None:
    """Delete all but the newest five releases and those to be kept, and whatever was left half-written."""
    if not folder.releases.is_dir():
        return
    names = sorted((path.name for path in folder.releases.iterdir()), reverse=True)
    whole = [name for name in names if not name.startswith(".")]
    for name in names:
        if name.startswith(".") or (name not in keep and name not in whole[:KEEP]):
            delete(folder.releases / name)


def delete(tree: Path) -> None:
    """Delete a folder; it disappears at once, its content a little later."""
    with contextlib.suppress(FileNotFoundError):
        doomed = tree if tree.name.startswith(".") else tree.rename(tree.with_name(f".gone-{tree.name}"))
        shutil.rmtree(doomed, ignore_errors=True)


def _make_folders(folder: Folder, user: Account | None) -> None:
    if user:
        for path in (folder.path.parent, folder.path, folder.releases):
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o711 if path != folder.releases else 0o755)
    folder.releases.mkdir(parents=True, exist_ok=True)
    for left in folder.releases.glob(".*"):
        delete(left)
    if not folder.shared.exists():
        folder.shared.mkdir(mode=0o750)
        if user:
            os.chown(folder.shared, user.uid, user.gid)
