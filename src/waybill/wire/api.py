"""Bodies of the API, as the server and the command line share them.

Unknown fields are ignored, so that versions can differ. A secret appears only in the one answer that makes it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["viewer", "deployer", "approver", "admin", "reporter"]


class RolloutInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout as people see it; times are RFC 3339 UTC, empty before they came."""

    id: str
    service: str
    environment: str
    repository: str
    branch: str
    commit: str
    cause: str
    actor: str
    state: str
    created: str
    sequence: int = 0
    build: str = ""
    previous: str = ""
    reason: str = ""
    started: str = ""
    finished: str = ""


class RolloutHostInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Where a host stands with a rollout.

    Attributes:
        told: Seconds since it was told; 0 before.
        away: Seconds for which it has not been connected.
        evidence: What the host saw when it failed.
    """

    host: str
    state: str
    told: float = 0.0
    away: float = 0.0
    reason: str = ""
    evidence: str = ""


class RolloutDetail(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout with its hosts."""

    rollout: RolloutInfo
    hosts: list[RolloutHostInfo] = []
    ended: bool = False


class DeployWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``POST /api/deploy``; ``ref`` is a branch or a commit."""

    service: str
    environment: str
    ref: str


class RollbackWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``POST /api/rollback``; ``to`` is a rollout, empty for the known-good one before the present."""

    service: str
    environment: str
    to: str = ""


class CancelWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``POST /api/rollouts/{id}/cancel``."""

    reason: str = ""


class LiveHost(msgspec.Struct, frozen=True, kw_only=True):
    """A service on one host, as the host last said."""

    host: str
    state: str
    health: str
    live_commit: str = ""
    live_sequence: int = 0
    connected: bool = False
    reason: str = ""
    evidence: str = ""
    at: str = ""


class EnvironmentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One service in one environment.

    Attributes:
        running: Rollouts that have not ended, newest first.
        last: The newest rollout that has ended.
        warnings: Sentences for a person.
    """

    service: str
    environment: str
    repository: str = ""
    hosts: list[LiveHost] = []
    running: list[RolloutInfo] = []
    last: RolloutInfo | None = None
    warnings: list[str] = []


class HostInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A host as people see it."""

    name: str
    labels: dict[str, str]
    connected: bool
    seen: str
    fingerprint: str
    recipient: str
    revoked: bool = False
    arch: str = ""
    system: str = ""
    version: str = ""
    disk_free: int = 0
    services: list[str] = []


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of ``GET /api/status``."""

    at: str
    version: str
    environments: list[EnvironmentStatus] = []
    hosts: list[HostInfo] = []


class Labels(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``PUT /api/hosts/{name}/labels``: all labels that the host has from now on."""

    labels: dict[str, str]


class ServiceOf(msgspec.Struct, frozen=True, kw_only=True):
    """Names a service in an environment."""

    service: str
    environment: str


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """An environment's age identity, encrypted to one host (age armor)."""

    armor: str


class EnrolmentWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``POST /api/enrolments``.

    Attributes:
        labels: What the hosts that enrol with it carry.
        uses: How many hosts may enrol.
        seconds: For how long.
    """

    labels: dict[str, str] = {}
    uses: int = 1
    seconds: int = 3600


class EnrolmentMade(msgspec.Struct, frozen=True, kw_only=True):
    """The enrolment token, shown this once."""

    token: str
    id: str
    expires: str
    uses: int
    labels: dict[str, str] = {}


class EnrolmentBody(msgspec.Struct, frozen=True, kw_only=True):
    """What an enrolment token holds: ``wbe1.`` and base64url of this as JSON.

    Attributes:
        url: Public address of the server.
        id: Names the token.
        secret: Proves that the host holds it; never travels.
        ca: Hex SHA-256 of the authority's certificate (DER).
    """

    url: str
    id: str
    secret: str
    ca: str


class GrantWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``PUT /api/grants/{service}/{environment}``."""

    repository: str
    branches: list[str]
    hosts: dict[str, str] = {}


class GrantInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a service file may at most ask for."""

    id: str
    repository: str
    service: str
    environment: str
    branches: list[str]
    hosts: dict[str, str]


class RepositoryWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``POST /api/repositories``: adds a repository or changes it.

    Attributes:
        name: By which hooks, grants and manifests name it.
        url: Where it is fetched from; holds no credential.
        deploy_key: SSH private key; None keeps what is there.
        https_token: Sent as the password of HTTP basic authentication; None keeps what is there.
        known_hosts: SSH host keys that are trusted, in the form of known_hosts; None keeps what is there.
    """

    name: str
    url: str
    deploy_key: str | None = None
    https_token: str | None = None
    known_hosts: str | None = None


class RepositoryInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A repository, without its credentials."""

    name: str
    url: str
    credentials: list[str] = []
    heads: dict[str, str] = {}
    trouble: str = ""


class HookWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``POST /api/hooks``; ``secret`` is one that exists already, such as a bare repository's."""

    forge: str
    repository: str
    secret: str | None = None


class HookMade(msgspec.Struct, frozen=True, kw_only=True):
    """Where the forge sends to, and the secret, shown this once."""

    id: str
    forge: str
    repository: str
    url: str
    secret: str


class HookInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook address; ``last`` is when it last delivered, empty for never or too long ago."""

    id: str
    forge: str
    repository: str
    url: str
    created: str
    actor: str
    last: str = ""


class TokenWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``POST /api/tokens``; ``days`` of 0 never expires."""

    name: str
    role: Role
    services: str = "*"
    environments: str = "*"
    days: int = 0


class TokenInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A token without its secret."""

    id: str
    name: str
    role: Role
    services: str = "*"
    environments: str = "*"
    expires: str = ""
    revoked: bool = False


class TokenMade(msgspec.Struct, frozen=True, kw_only=True):
    """A fresh token; ``text`` is shown this once."""

    text: str
    token: TokenInfo


class EventInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened; ``sentence`` says it in words."""

    seq: int
    id: str
    at: str
    actor: str
    kind: str
    subject: str
    sentence: str
    body: dict[str, object] = {}


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a service's log on a host; ``note`` is the server's own word instead."""

    host: str
    line: str = ""
    note: str = ""


class BuildInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A build that is there."""

    id: str
    service: str
    repository: str
    commit: str
    digest: str
    size: int


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What ``doctor`` found.

    Attributes:
        check: What was looked at, in a few words.
        level: ``fault`` stops something from working, ``warning`` will or may.
        sentence: What was seen.
        fix: What to do, exactly; empty when all is well.
    """

    check: str
    level: Literal["fine", "warning", "fault"]
    sentence: str
    fix: str = ""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of ``GET /api/doctor``; ``agents_url`` is for the asker to try from where it stands."""

    at: str
    version: str
    public_url: str
    agents_url: str
    findings: list[Finding] = []
