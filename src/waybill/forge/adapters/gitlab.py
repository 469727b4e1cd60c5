"""GitLab: a signing token (Standard Webhooks), or the older secret token in ``X-Gitlab-Token``.

Which of the two counts is told by the hook's secret: a signing token begins with ``whsec_``, and a hook that has one
takes nothing less. The older token proves only that the sender knows it; body and time are unproven.
https://docs.gitlab.com/user/project/integrations/webhooks/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar

import msgspec

from waybill.core.errors import InvalidInputError
from waybill.forge import payload, signatures
from waybill.forge.model import Delivery, Forge, ForgeEvent, Ignored, UnsignedError, WrongSignatureError


class _Kind(msgspec.Struct):
    object_kind: str | None = None
    event_name: str | None = None


class _Project(msgspec.Struct):
    path_with_namespace: str
    git_http_url: str | None = None
    git_ssh_url: str | None = None


class _Push(msgspec.Struct):
    ref: str
    before: str
    after: str
    project: _Project
    user_id: int | None = None
    user_username: str | None = None
    user_name: str | None = None
    commits: list[payload.Commit] | None = None
    total_commits_count: int | None = None


class GitLab:
    """GitLab.com and self-managed GitLab; project, group and system hooks."""

    name: ClassVar[str] = "gitlab"

    def verify(self, headers: Mapping[str, str], body: bytes, secret: str, now: datetime) -> Delivery:
        """Authenticate a request; see ``Forge.verify``."""
        if secret.startswith("whsec_"):
            identity: str | None = signatures.check_standard(headers, body, secret, now)
        else:
            _check_token(headers, secret)
            identity = signatures.delivery_of(headers, "Idempotency-Key")
        if identity is None:  # before GitLab 17.4; events that one hook sets off in a chain share the UUID
            identity = signatures.digest_id(body, signatures.delivery_of(headers, "X-Gitlab-Event-UUID") or "")
        return Delivery(id=identity, event=signatures.event_of(headers, "X-Gitlab-Event"))

    def read(self, event: str, body: bytes) -> Sequence[ForgeEvent]:
        """The events of a request; see ``Forge.read``."""
        told = payload.decode(self.name, event, body, _Kind)
        kind = told.object_kind or told.event_name
        announced = {"Push Hook": "push", "Tag Push Hook": "tag_push"}.get(event)
        if announced is not None and kind != announced:
            raise InvalidInputError(
                f"X-Gitlab-Event says {event!r}, and the body is no such event: $.object_kind is not {announced!r}."
            )
        if kind not in ("push", "tag_push"):
            return [Ignored(event=event, reason=f"nothing reacts to {event}.")]
        return [self._push(payload.decode(self.name, event, body, _Push))]

    def _push(self, told: _Push) -> ForgeEvent:
        project, commits = told.project, told.commits or []
        return payload.push(
            self.name,
            repository=payload.repository(
                self.name,
                project.path_with_namespace,
                "$.project.path_with_namespace",
                project.git_http_url,
                project.git_ssh_url,
            ),
            ref=told.ref,
            before=told.before,
            after=told.after,
            actor=payload.actor(told.user_username or told.user_name, told.user_id),
            commits=commits if len(commits) == told.total_commits_count else None,
        )


def _check_token(headers: Mapping[str, str], secret: str) -> None:
    given = signatures.one(headers, "X-Gitlab-Token")
    if given is None:
        signed = signatures.one(headers, "webhook-signature") is not None
        raise UnsignedError(
            "the request carries no X-Gitlab-Token.",
            "The forge signs with a signing token: store that one (whsec_…) as this hook's secret."
            if signed
            else "Set the hook's secret token, or better its signing token, in the forge.",
        )
    if not signatures.equal(signatures.key_of(secret), given):
        raise WrongSignatureError(
            "X-Gitlab-Token is not this hook's secret.", "Enter the same secret token in the forge and in Waybill."
        )


FORGE: Forge = GitLab()
