"""What a host does next: pure decisions over what it was told and how far it came.

``heed`` takes in a message of the server, ``next_step`` compares what should be with what is. Neither acts; the loop
in ``converge`` performs the step, stores the outcome and asks again, so a step that was cut off by SIGKILL is decided
anew from what is on disk. Absence is never an instruction: without a message nothing is stopped.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from waybill.agent.state import Attempt, Live, Refusal, Stage, Told
from waybill.core.errors import InvalidInputError
from waybill.trust import manifest as manifests
from waybill.wire.agent import Abandon, Desired, Remove, State

COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Rest(msgspec.Struct, frozen=True):
    """Nothing to do until something changes."""

    state: State


class Begin(msgspec.Struct, frozen=True):
    """Start bringing up what is wanted."""


class Continue(msgspec.Struct, frozen=True):
    """Perform this stage of the attempt."""

    stage: Stage


class Adopt(msgspec.Struct, frozen=True):
    """What is wanted runs already: only its sequence is new."""


class Judge(msgspec.Struct, frozen=True):
    """End the attempt with this verdict, before it is undone."""

    verdict: Literal["abandoned", "held"]
    reason: str


class Undo(msgspec.Struct, frozen=True):
    """Take away what the attempt brought up; what served before goes on."""


class Erase(msgspec.Struct, frozen=True):
    """A person removed the service from this host: stop it and delete its releases."""


Step = Rest | Begin | Continue | Adopt | Judge | Undo | Erase
Heeded = Literal["accepted", "refused", "ignored"]


def allowed(key: str, patterns: Sequence[str]) -> bool:
    """Whether the host's own list accepts ``service/environment``; ``*`` does not span the slash."""
    service, _, environment = key.partition("/")
    for pattern in patterns:
        wanted_service, _, wanted_environment = pattern.partition("/")
        if fnmatch.fnmatchcase(service, wanted_service) and fnmatch.fnmatchcase(environment, wanted_environment or "*"):
            return True
    return False


def heed(told: Told, message: Desired | Abandon | Remove, server: str, allow: Sequence[str], at: str) -> Told:
    """What the host has been told, now that this message came.

    Late and doubled messages change nothing. A manifest that this host will not run is noted as a refusal and leaves
    all else as it is.

    Args:
        told: Before the message.
        message: About the same service and environment.
        server: Id of the server's database, from its greeting.
        allow: The host's own list.
        at: The host's clock.
    """
    if told.server == server and message.revision <= told.revision:
        return told
    told = msgspec.structs.replace(told, server=server, revision=message.revision)
    match message:
        case Abandon():
            return msgspec.structs.replace(told, abandoned=max(told.abandoned, message.sequence))
        case Remove():
            return msgspec.structs.replace(told, removed=message.by or "the server", sealed=None)
        case Desired():
            manifest = manifests.decode(message.manifest)
            refusal = _refusal(told, message, manifest, allow)
            if refusal:
                return msgspec.structs.replace(told, refusal=Refusal(sequence=manifest.sequence, reason=refusal))
            return msgspec.structs.replace(
                told,
                highest=manifest.sequence,
                rollout=message.rollout,
                manifest=message.manifest,
                sealed=message.sealed,
                once=message.once,
                at=at,
                removed="",
                refusal=None,
            )


def _refusal(told: Told, message: Desired, manifest: manifests.Manifest, allow: Sequence[str]) -> str:
    if not allowed(manifest.key, allow):
        return f"this host does not accept {manifest.key}; its own list allows {', '.join(allow) or 'nothing'}."
    if manifest.sequence < max(told.highest, 1):
        return (
            f"sequence {manifest.sequence} of {manifest.key} is older than {told.highest}, which this host has"
            " accepted; it never goes back."
        )
    if manifest.sequence == told.highest and told.manifest and message.manifest != told.manifest:
        return f"sequence {manifest.sequence} of {manifest.key} was given to another manifest before."
    return ""


def subject(message: Desired | Abandon | Remove) -> tuple[str, str]:
    """Service and environment that a message is about.

    Raises:
        InvalidInputError: The manifest in it cannot be read.
    """
    if isinstance(message, Desired):
        manifest = manifests.decode(message.manifest)
        if manifest.sequence < 1:
            raise InvalidInputError(f"the manifest of {manifest.key} has sequence {manifest.sequence}.")
        if not COMMIT.fullmatch(manifest.commit):
            raise InvalidInputError(f"the manifest of {manifest.key} names no commit: {manifest.commit[:80]!r}.")
        for name, value in (("build", manifest.build), ("locked file", manifest.locked)):
            if value is not None and not DIGEST.fullmatch(value):
                raise InvalidInputError(f"the manifest of {manifest.key} has a {name} of no digest: {value[:80]!r}.")
        return manifest.service, manifest.environment
    return message.service, message.environment


def next_step(  # noqa: C901, PLR0911, PLR0912 - one table, read from top to bottom
    told: Told, attempt: Attempt | None, live: Live | None, *, held: bool, exists: bool
) -> Step:
    """The one thing to do now.

    Args:
        told: What the server said last.
        attempt: How far this host came with it, or with something older.
        live: What serves users.
        held: Whether a person on this host said ``hold``.
        exists: Whether there are releases or processes that a removal would have to take away.
    """
    if told.removed:
        return Erase() if exists or live or attempt else Rest("removed")
    wanted = told.wanted()
    if attempt and unfinished(attempt, live):
        if attempt.verdict:
            return Undo()
        if attempt.sequence <= told.abandoned and not attempt.rollback:
            return Judge("abandoned", "the server took it back.")
        if held and not attempt.rollback:
            return Judge("held", "a person on this host said hold.")
        if attempt.rollback and attempt.rollback == told.highest:
            return Continue(attempt.stage)
        if wanted is None or (attempt.sequence, attempt.rollout) != (wanted.sequence, told.rollout):
            return Judge("abandoned", f"superseded by sequence {told.highest}.")
        return Continue(attempt.stage)
    if wanted is None:
        return Rest("refused" if told.refusal else "waiting")
    if live and live.placed.manifest.sequence == wanted.sequence:
        return Rest("live")
    if held:
        return Rest("held")
    if wanted.sequence <= told.abandoned:
        return Rest("abandoned")
    if attempt and attempt.rollback == wanted.sequence:
        return Rest("abandoned")
    if (
        attempt
        and attempt.verdict not in ("", "held")
        and (attempt.sequence, attempt.rollout) == (wanted.sequence, told.rollout)
    ):
        return Rest(attempt.verdict or "waiting")
    if live and live.placed.manifest.same_content(wanted):
        return Adopt()
    return Begin()


def unfinished(attempt: Attempt | None, live: Live | None) -> bool:
    """Whether an attempt goes on, or has left something that is still to be taken away."""
    if attempt is None or attempt.cleared:
        return False
    return live is None or live.placed.release.id != attempt.release


def resumed(attempt: Attempt) -> Attempt:
    """The attempt as it stands after the agent was away: from its first process on, every step is taken again.

    Processes may have died with the machine, and decrypted variables with its memory. A step that is still in
    effect changes nothing when it is performed again.
    """
    if attempt.stage in ("starting", "probing", "switching"):
        return msgspec.structs.replace(attempt, stage="preparing")
    return attempt
