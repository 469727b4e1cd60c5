"""What server and agent say to each other, over mutual TLS on the agents' own port.

The agent holds one streaming ``GET /v1/desired`` open; the server writes one JSON message a line (NDJSON) and an
empty line as a heartbeat. The agent answers by ``POST /v1/report``. Unknown fields are ignored and unknown message
types skipped, so that versions can differ. Absence is never an instruction: only ``Abandon`` and ``Remove`` take
something away, and only what they name.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """First line of a stream.

    Attributes:
        server: Id of the server's database; another one than last time means that the server lost its past.
        host: The name by which the server knows this host.
        at: The server's clock, RFC 3339 UTC, by which an agent notices a skewed clock.
        heartbeat: Seconds between lines at most; three times that in silence means the connection is dead.
        revision: The newest revision that the server knows; lower than the agent's means that an older copy of the
            database was put back.
    """

    server: str
    host: str
    at: str
    heartbeat: int = 20
    revision: int | None = None


class Desired(msgspec.Struct, frozen=True, kw_only=True, tag="desired"):
    """This manifest should be live here.

    Attributes:
        revision: Rises with every change told to any host; the agent asks with ``?since=`` after a reconnect.
        rollout: Id of the rollout that wants it.
        manifest: Canonical bytes of the ``trust.manifest.Manifest``, as text, exactly as first written.
        sealed: The environment's age identity encrypted to this host (age armor), when it has locked variables.
        once: Whether this host runs the functions marked ``once``; one host of a rollout does, and the others are
            told when it has.
    """

    revision: int
    rollout: str
    manifest: str
    sealed: str | None = None
    once: bool = True


class Abandon(msgspec.Struct, frozen=True, kw_only=True, tag="abandon"):
    """Stop bringing up this sequence (and older ones) of a service; what serves stays as it is."""

    revision: int
    service: str
    environment: str
    sequence: int


class Remove(msgspec.Struct, frozen=True, kw_only=True, tag="remove"):
    """A person removed this service from this host: stop it and delete its releases."""

    revision: int
    service: str
    environment: str
    by: str


class BuildOrder(msgspec.Struct, frozen=True, kw_only=True, tag="build"):
    """Build this commit once, pack its output and upload it with ``PUT /v1/builds/{id}``."""

    revision: int
    id: str
    service: str
    repository: str
    commit: str
    file: str


class LogsWanted(msgspec.Struct, frozen=True, kw_only=True, tag="logs"):
    """Somebody watches the log of a service: send its last lines and, until ``seconds`` have passed, new ones.

    Lines go to ``POST /v1/logs/{id}``.
    """

    id: str
    service: str
    environment: str
    lines: int = 100
    seconds: int = 0


FromServer = Hello | Desired | Abandon | Remove | BuildOrder | LogsWanted

State = Literal[
    "waiting", "fetching", "preparing", "starting", "probing", "switching", "live", "failed", "abandoned",
    "refused", "held", "removed",
]  # fmt: skip
"""Where a host stands with a manifest. ``live``, ``failed``, ``abandoned``, ``refused``, ``held`` and ``removed``
are final until told otherwise; ``held`` means that a person on the host said ``waybill agent hold``."""

FINAL: frozenset[str] = frozenset({"live", "failed", "abandoned", "refused", "held", "removed"})


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Where one service stands on the host.

    Attributes:
        service: As in the manifest.
        environment: As in the manifest.
        sequence: Of the manifest this is about.
        state: Where the host stands with it.
        reason: One sentence for a person when it is not going well, for example the refusal.
        evidence: What was seen: the failing response or the last log lines, at most 4 KiB, no secrets.
        live_sequence: Of the manifest that serves users now; 0 when none does.
        live_commit: Its commit; empty when none is live.
        health: Health of what serves now.
        at: The host's clock, RFC 3339 UTC.
        took: Milliseconds from being told to this state.
        highest: Highest sequence that the host ever accepted; a server that lost its past counts on from there.
    """

    service: str
    environment: str
    sequence: int
    state: State
    at: str
    reason: str = ""
    evidence: str = ""
    live_sequence: int = 0
    live_commit: str = ""
    health: Literal["unknown", "healthy", "failing", "restarting", "stopped"] = "unknown"
    took: int = 0
    highest: int = 0


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the host says of itself; informs, never selects (labels belong to the enrolment)."""

    version: str
    arch: str
    system: str
    at: str
    drivers: list[str] = []
    disk_free: int = 0


class Reports(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``POST /v1/report``: the newest report of each service that changed."""

    reports: list[Report] = []
    facts: Facts | None = None


class LogLines(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``POST /v1/logs/{id}``; ``end`` closes the watcher's stream."""

    lines: list[str] = []
    end: bool = False


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``POST /api/enrol`` on the public port.

    Attributes:
        token: Id part of the enrolment token.
        name: The name that the host asks for.
        csr: Certificate signing request, PEM.
        recipient: The host's own age recipient.
        proof: Hex HMAC-SHA256 over ``token NUL name NUL csr NUL recipient``, keyed with SHA-256 of the token's
            secret: the secret itself never travels, so the exchange is safe on a plain connection.
    """

    token: str
    name: str
    csr: str
    recipient: str
    proof: str
    facts: Facts | None = None


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to ``Enrolment``; the agent checks ``ca`` against the fingerprint in its token before it trusts it."""

    host: str
    certificate: str
    ca: str
    agents_url: str
    labels: dict[str, str] = {}
