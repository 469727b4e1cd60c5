"""The push payload that GitHub introduced and Gitea and Forgejo send too."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from waybill.forge import payload
from waybill.forge.model import ForgeEvent, Ignored


class _Person(msgspec.Struct):
    id: int | None = None
    login: str | None = None
    name: str | None = None


class _Repository(msgspec.Struct):
    full_name: str
    clone_url: str | None = None
    ssh_url: str | None = None


class _Push(msgspec.Struct):
    ref: str
    before: str
    after: str
    repository: _Repository
    sender: _Person | None = None
    pusher: _Person | None = None
    forced: bool | None = None
    commits: list[payload.Commit] | None = None
    total_commits: int | None = None


def read(forge: str, event: str, body: bytes, limit: int | None) -> Sequence[ForgeEvent]:
    """The events of a delivery.

    Args:
        forge: Its name, for the sentences.
        event: The value of its event header.
        body: Raw JSON.
        limit: Commits that the forge lists at most; a payload with as many may lack some. None when it says itself
            how many there were (``total_commits``).
    """
    if event != "push":
        payload.decode(forge, event, body, payload.Anything)
        return [Ignored(event=event, reason=_REASONS.get(event, f"nothing reacts to {event}."))]
    told = payload.decode(forge, event, body, _Push)
    commits = told.commits or []
    complete = len(commits) == told.total_commits if limit is None else len(commits) < limit
    who = told.sender or told.pusher or _Person()
    repository = told.repository
    return [
        payload.push(
            forge,
            repository=payload.repository(
                forge, repository.full_name, "$.repository.full_name", repository.clone_url, repository.ssh_url
            ),
            ref=told.ref,
            before=told.before,
            after=told.after,
            actor=payload.actor(who.login or who.name, who.id),
            forced=told.forced,
            commits=commits if complete else None,
        )
    ]


_REASONS = {
    "ping": "the forge tried the hook out; it works.",
    "create": "the push event tells of new branches and tags.",
    "delete": "the push event tells of deleted branches and tags.",
}
