"""What an agent keeps on disk: one folder, readable without the server and without a running agent.

Every file is written whole, to a temporary name, synced and renamed, so that a power cut leaves the old or the new
one. ``desired.json`` is what the host was told, ``attempt.json`` how far it came with it, ``live.json`` what serves
users. Nothing else is remembered.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from waybill.core.errors import ConflictError, InvalidInputError, NotFoundError
from waybill.drivers.model import Release
from waybill.trust import manifest as manifests
from waybill.trust.manifest import Manifest

T = TypeVar("T")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""Names of services and environments, which become folder names."""

Stage = Literal["fetching", "preparing", "starting", "probing", "switching"]
STAGES: tuple[Stage, ...] = ("fetching", "preparing", "starting", "probing", "switching")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """``agent.toml``: what the operator pinned at enrolment.

    Attributes:
        host: The name by which the server knows this host.
        servers: Addresses of the agents' port, tried in turn.
        allow: Patterns ``service/environment`` of what this host accepts.
        policy: How a manifest must be vouched for; ``webhook`` takes what the server relays.
        accounts: Whether a root agent gives each service an unprivileged account; without it, as on a demo machine,
            everything runs as the agent itself.
        address: The address that services listen on unless their file names one; empty means all of the host's.
            Several hosts on one machine, as in a demo, have one each.
    """

    host: str
    servers: tuple[str, ...]
    allow: tuple[str, ...]
    policy: Literal["webhook"] = "webhook"
    accounts: bool = True
    address: str = ""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest that this host was told and will not act on."""

    sequence: int
    reason: str


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """``desired.json``: the last word of the server on one service and environment.

    Attributes:
        server: Id of the server's database that said it.
        revision: Of the newest message heeded, within that server's count.
        highest: Highest sequence ever accepted; only rises.
        rollout: Who wants it; the same sequence wanted by another rollout is tried again.
        manifest: Canonical bytes as text; empty when none was ever accepted.
        sealed: The environment's age identity, encrypted to this host.
        once: Whether this host runs the functions marked ``once``.
        at: When it was told, by this host's clock.
        abandoned: No sequence up to this one is brought up any more.
        removed: Who had it removed; empty as long as nobody did.
        refusal: The newest manifest that was refused before it was accepted.
    """

    server: str = ""
    revision: int = 0
    highest: int = 0
    rollout: str = ""
    manifest: str = ""
    sealed: str | None = None
    once: bool = True
    at: str = ""
    abandoned: int = 0
    removed: str = ""
    refusal: Refusal | None = None

    def wanted(self) -> Manifest | None:
        """The manifest that should be live, if there ever was one."""
        return manifests.decode(self.manifest) if self.manifest else None


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """A release laid out on this host, with all that is needed to start or stop it again without the server.

    Attributes:
        manifest: What it was made from.
        driver: Which driver runs it.
        release: What the driver is told; its options are a plain object when they come from disk.
        sealed: The environment's age identity, encrypted to this host.
        variables: Path of the locked file in the commit.
    """

    manifest: Manifest
    driver: str
    release: Release
    sealed: str | None = None
    variables: str | None = None


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """``attempt.json``: how far this host came with a manifest.

    Attributes:
        sequence: Of the manifest.
        rollout: That wants it.
        release: Name of the release folder.
        at: When the host was told, for measuring.
        stage: What is being done now.
        ran: Functions that ran to their end already.
        placed: The release, once it is laid out.
        started: Its processes may exist.
        switching: Users may already reach it.
        verdict: How it ended; empty while it goes on.
        reason: One sentence for a person.
        evidence: What was seen.
        cleared: Nothing of it is left but this record.
        rollback: The highest sequence told when a person on this host asked to go back; 0 when nobody did.
        again: The release to go back to.
        by: Who asked.
    """

    sequence: int
    rollout: str
    release: str
    at: str
    stage: Stage = "fetching"
    ran: tuple[str, ...] = ()
    placed: Placed | None = None
    started: bool = False
    switching: bool = False
    verdict: Literal["", "failed", "refused", "abandoned", "held"] = ""
    reason: str = ""
    evidence: str = ""
    cleared: bool = False
    rollback: int = 0
    again: Placed | None = None
    by: str = ""


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """``live.json``: what serves users.

    Attributes:
        placed: The release that new connections reach.
        previous: The last good one before it, to which ``waybill agent rollback`` returns.
        retiring: Releases that drain or still have to be stopped.
        since: When it went live.
        took: Milliseconds from being told to serving.
    """

    placed: Placed
    previous: Placed | None = None
    retiring: tuple[Placed, ...] = ()
    since: str = ""
    took: int = 0


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """``server.json``: where the stream is continued after a reconnect."""

    server: str = ""
    revision: int = 0


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """``link.json``: how the connection to the server stands, for a person on the host.

    Attributes:
        at: Since when.
        trouble: Why there is none; empty while there is one.
    """

    at: str
    trouble: str


class Rollback(msgspec.Struct, frozen=True, kw_only=True):
    """``rollback.json``: a person on this host wants the previous good release back."""

    by: str
    at: str


class Home:
    """The agent's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.keys = root / "keys"
        self.objects = root / "objects"
        self.work = root / "work"
        self.builds = root / "builds"

    @property
    def enrolled(self) -> bool:
        """Whether an enrolment was ever completed here."""
        return (self.root / "agent.toml").exists()

    def config(self) -> Config:
        """What ``agent.toml`` says."""
        path = self.root / "agent.toml"
        try:
            return msgspec.convert(tomllib.loads(path.read_text()), Config)
        except FileNotFoundError:
            raise NotFoundError(f"{self.root} holds no enrolled agent.", "Run `waybill agent enroll TOKEN`.") from None
        except PermissionError:
            raise NotFoundError(f"{path} cannot be read by you.", "Run this as the agent's user, or root.") from None
        except (ValueError, msgspec.ValidationError) as error:
            raise InvalidInputError(f"{path}: {error}", "Correct the file, or enrol again with --force.") from error

    def write_config(self, config: Config) -> None:
        """Store ``agent.toml``; its presence makes the folder an enrolled one, so it is written last."""
        rows = [f"{name} = {json.dumps(value)}" for name, value in msgspec.to_builtins(config).items()]
        write(self.root / "agent.toml", "\n".join(rows) + "\n", 0o644)

    def known(self) -> Known:
        """Where the stream of the server stands."""
        return read(self.root / "server.json", Known) or Known()

    def link(self) -> Standing | None:
        """How the connection to the server stands."""
        return read(self.root / "link.json", Standing)

    def remember(self, known: Known) -> None:
        """Store where the stream stands; after what was heard has been stored itself."""
        write(self.root / "server.json", msgspec.json.encode(known))

    def services(self) -> list[Folder]:
        """The folder of every service and environment that this host was ever told of."""
        base = self.root / "services"
        found = sorted(base.iterdir()) if base.is_dir() else []
        return [Folder(path) for path in found if "@" in path.name and not path.name.startswith(".")]

    def service(self, service: str, environment: str) -> Folder:
        """The folder of one service and environment.

        Raises:
            InvalidInputError: The names could not be names, for example because they hold a slash.
        """
        for name in (service, environment):
            if not NAME.fullmatch(name):
                raise InvalidInputError(f"{name!r} is no name of a service or environment.")
        return Folder(self.root / "services" / f"{service}@{environment}")

    def named(self, key: str) -> Folder:
        """The folder of ``service/environment`` as a person typed it."""
        service, slash, environment = key.partition("/")
        if not slash:
            found = [folder for folder in self.services() if folder.path.name.startswith(f"{service}@")]
            if len(found) == 1:
                return found[0]
            raise InvalidInputError(f"{key!r} does not say which environment.", "Write SERVICE/ENVIRONMENT.")
        folder = self.service(service, environment)
        if not folder.path.is_dir():
            raise NotFoundError(f"this host was never told of {key}.", "`waybill agent status` lists what it knows.")
        return folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one agent that acts on this folder.

        Raises:
            ConflictError: Another process holds it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.root / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConflictError(f"an agent already runs on {self.root}.", "There can be one.") from None
            os.pwrite(handle, f"{os.getpid():<10}".encode(), 0)  # in place: works on a full disk too
            yield
        finally:
            os.close(handle)

    def running(self) -> int:
        """Process id of the agent that acts on this folder; 0 when none does."""
        try:
            handle = os.open(self.root / "agent.lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(os.read(handle, 20) or b"0")
        else:
            return 0
        finally:
            os.close(handle)


class Folder:
    """``services/<service>@<environment>``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.service, _, self.environment = path.name.partition("@")
        self.key = f"{self.service}/{self.environment}"
        self.releases = path / "releases"
        self.shared = path / "shared"
        self.current = path / "current"

    def told(self) -> Told:
        """What the server said last."""
        return read(self.path / "desired.json", Told) or Told()

    def attempt(self) -> Attempt | None:
        """How far this host came with it."""
        return read(self.path / "attempt.json", Attempt)

    def live(self) -> Live | None:
        """What serves users."""
        return read(self.path / "live.json", Live)

    def rollback(self) -> Rollback | None:
        """A person's wish to go back that was not acted on yet."""
        return read(self.path / "rollback.json", Rollback)

    @property
    def held(self) -> bool:
        """Whether a person said ``hold``."""
        return (self.path / "hold").exists()

    def store(self, record: Told | Attempt | Live | Rollback) -> None:
        """Write one of the records."""
        names = {Told: "desired.json", Attempt: "attempt.json", Live: "live.json", Rollback: "rollback.json"}
        write(self.path / names[type(record)], msgspec.json.encode(record))

    def point(self, release: str) -> None:
        """Make ``current`` name this release, in one step."""
        temporary = self.path / ".current"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(f"releases/{release}")
        temporary.replace(self.current)
        sync_folder(self.path)


def default_home() -> Path:
    """``/var/lib/waybill-agent`` for root, a folder of one's own otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/waybill-agent")
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(base) / "waybill-agent"


def write(path: Path, content: bytes | str, mode: int = 0o600) -> None:
    """Write a file whole and durably."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path, kind: type[T]) -> T | None:
    """The record in a file; None when there is no file.

    Raises:
        InvalidInputError: Somebody else wrote to it.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise InvalidInputError(f"{path} is damaged: {error}") from error


def options_of(placed: Placed, kind: type[Any]) -> Placed:
    """The same with the driver's own options, which JSON made a plain object, turned back into their type."""
    if isinstance(placed.release.options, kind):
        return placed
    options = msgspec.convert(placed.release.options or {}, kind)
    return msgspec.structs.replace(placed, release=msgspec.structs.replace(placed.release, options=options))
