"""What the server keeps about hosts, grants and rollouts, as frozen values."""

from __future__ import annotations

from typing import Literal

import msgspec

RolloutState = Literal[
    "waiting", "building", "running", "reverting", "done", "failed", "reverted", "cancelled", "superseded"
]
ENDED: frozenset[str] = frozenset({"done", "failed", "reverted", "cancelled", "superseded"})


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """A git repository that the server mirrors.

    Attributes:
        name: By which hooks, grants and manifests name it, for example ``team/hello``.
        url: Where it is fetched from; never holds a credential.
        trouble: Why it could not be fetched the last time; empty when it could.
    """

    name: str
    url: str
    trouble: str = ""


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What a service file may at most ask for.

    Attributes:
        repository: The one repository whose file this concerns.
        service: Name of the service.
        environment: Name of the environment.
        branches: Patterns; a branch must match one of these *and* one of the file's.
        hosts: Labels that every host of the environment carries.
    """

    id: str
    repository: str
    service: str
    environment: str
    branches: tuple[str, ...]
    hosts: dict[str, str]


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """A machine with the agent.

    Attributes:
        name: Unique, chosen at enrolment.
        labels: From the enrolment token or an admin, never from the host.
        recipient: Its age recipient.
        fingerprint: Of the recipient, as the host printed it.
        seen: When it was last heard of, RFC 3339 UTC; empty before the first time.
        connected: Whether its stream is open now, on any server.
        revoked: It may no longer connect.
        arch: For example ``x86_64``.
        facts: JSON of ``wire.agent.Facts``.
    """

    name: str
    labels: dict[str, str]
    recipient: str
    fingerprint: str
    seen: str = ""
    connected: bool = False
    revoked: bool = False
    arch: str = ""
    facts: str = ""


Order = Literal["together", "one-by-one", "first-then-rest"]


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """One build going to one environment.

    Attributes:
        id: UUIDv7.
        origin: What caused it, once per service and environment: an event's id, or an id of its own.
        file: Path of the service file in the commit.
        cause: ``push``, ``deploy`` or ``rollback``.
        actor: Who caused it.
        sequence: Of the manifest that hosts were told last; 0 before.
        order: ``first-then-rest`` is for functions that one host runs before any other switches.
        build: Digest of the packed build; empty where the tree is the build, or before it is there.
        locked: Digest of the locked variables at the commit; empty without.
        limit: Seconds that a connected host has.
        previous: Rollout that was good when this one started; empty when there was none.
        manifest: Canonical bytes as text; empty before it runs.
        outcome: State that it ends in once hosts are back, while it is reverting.
        reason: Why it is where it is.
    """

    id: str
    service: str
    environment: str
    repository: str
    branch: str
    commit: str
    file: str
    cause: str
    actor: str
    state: RolloutState
    created: str
    origin: str
    sequence: int = 0
    order: Order = "together"
    needs_build: bool = False
    build: str = ""
    locked: str = ""
    limit: float = 600.0
    previous: str = ""
    manifest: str = ""
    outcome: str = ""
    reason: str = ""
    started: str = ""
    finished: str = ""

    @property
    def key(self) -> str:
        """``service/environment``: at most one rollout of a key runs at a time."""
        return f"{self.service}/{self.environment}"


class RolloutHost(msgspec.Struct, frozen=True, kw_only=True):
    """Where one host stands with a rollout.

    Attributes:
        host: Its name.
        sequence: Of the manifest it was told last; 0 before.
        state: A state of ``wire.agent.State``, or ``untold``.
        told: Seconds since it was told; 0 before.
        away: Seconds for which it has not been connected; 0 when it is.
        reason: Its sentence when it is not going well.
    """

    host: str
    sequence: int = 0
    state: str = "untold"
    told: float = 0.0
    away: float = 0.0
    reason: str = ""
