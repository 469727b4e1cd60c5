"""From a push to rollouts: fetch, see what moved, plan within the grants."""

from __future__ import annotations

import asyncio

from waybill.core import canonical
from waybill.core.clock import stamp
from waybill.core.errors import InvalidInputError, NotFoundError, WaybillError
from waybill.core.ids import new_id
from waybill.deploy import advance, rules
from waybill.deploy.adapters.git import Mirrors
from waybill.deploy.events import BranchGone, BranchMoved, Changed, DeploymentRefused, RepositoryAway, RepositoryBack
from waybill.deploy.model import Order, Repository, Rollout
from waybill.deploy.servicefile import ServiceFile
from waybill.deploy.servicefile_parse import parse
from waybill.deploy.servicefile_tree import concerned, distinct, find
from waybill.deploy.store import hosts as host_store
from waybill.deploy.store import repositories
from waybill.events import outbox
from waybill.events.model import Again, Event
from waybill.events.outbox import Work
from waybill.infra.db import Connection, Database

SYNC = "sync"
SWEEP = "sweep"
HOST_SLACK = 120.0
"""Seconds that a host has for fetching and starting, beside what its health check and functions may take."""


class Pushes:
    """Looks at repositories and starts what their branches ask for.

    Args:
        db: The database.
        mirrors: The server's mirrors of repositories.
    """

    def __init__(self, db: Database, mirrors: Mirrors) -> None:
        self._db = db
        self.mirrors = mirrors

    async def add_repository(self, repository: Repository, actor: str) -> dict[str, str]:
        """Make a repository known and take its heads as they are: only later moves deploy; returns branch → commit.

        Raises:
            UnavailableError: It cannot be fetched; it is not added then.
        """
        heads = await self.mirrors.fetch(repository)

        def apply(connection: Connection) -> None:
            new = repositories.put_repository(connection, repository)
            change = f"{'added' if new else 'moved'}, {repository.url}"
            outbox.record(connection, Changed(what="repository", name=repository.name, change=change), actor)
            for branch, commit in heads.items():
                repositories.put_head(connection, repository.name, branch, commit)
            _note_trouble(connection, repository.name, "")

        await self._db.write(apply)
        return heads

    async def sync(self, work: Work) -> Again | None:
        """Handler: fetch a repository and note which branches moved."""
        repository = await self._db.read(lambda connection: repositories.repository(connection, work.key))
        try:
            heads = await self.mirrors.fetch(repository)
        except WaybillError as error:
            await self._note_trouble(repository, error.reason)
            raise
        await self._note_trouble(repository, "")
        known = await self._db.read(lambda connection: repositories.heads(connection, repository.name))
        moved = {branch: commit for branch, commit in heads.items() if known.get(branch) != commit}
        forced = {
            branch
            for branch, commit in moved.items()
            if branch in known and not await self.mirrors.descends(repository.name, known[branch], commit)
        }

        def apply(connection: Connection) -> None:
            outbox.check(connection, work)
            current = repositories.heads(connection, repository.name)
            for branch, commit in moved.items():
                if current.get(branch) == commit:
                    continue
                repositories.put_head(connection, repository.name, branch, commit)
                body = BranchMoved(
                    repository=repository.name,
                    branch=branch,
                    commit=commit,
                    before=current.get(branch, ""),
                    forced=branch in forced,
                )
                outbox.record(connection, body, "waybill")
            for branch in current.keys() - heads.keys():
                repositories.drop_head(connection, repository.name, branch)
                outbox.record(connection, BranchGone(repository=repository.name, branch=branch), "waybill")

        if moved or known.keys() - heads.keys():
            await self._db.write(apply)
        return None

    async def sweep(self, _work: Work) -> Again | None:
        """Handler: compare the heads of every repository with what was seen, for hooks that never came."""
        known = await self._db.read(repositories.repositories)
        for repository in known:
            try:
                remote = await self.mirrors.remote_heads(repository)
            except WaybillError as error:
                await self._note_trouble(repository, error.reason)
                continue
            await self._note_trouble(repository, "")
            seen = await self._db.read(lambda connection, name=repository.name: repositories.heads(connection, name))  # type: ignore[misc]
            if remote != seen:
                await self._db.write(lambda connection, name=repository.name: outbox.wake(connection, SYNC, name))  # type: ignore[misc]
        self.mirrors.forget_packs()
        return None

    async def start(self, event: Event) -> None:
        """Deploy what a branch's new head asks for and may have; say why where it may not."""
        moved = event.body
        assert isinstance(moved, BranchMoved)  # noqa: S101 - the reaction hands over nothing else
        try:
            files = await self.files(moved.repository, moved.commit)
        except WaybillError as error:
            await self._refuse(moved, error)
            return
        if moved.before:
            changed = await self.mirrors.changed(moved.repository, moved.before, moved.commit)
            files = files if changed is None else concerned(files, changed)
        known_hosts, grants = await self._db.read(
            lambda connection: (host_store.hosts(connection), repositories.grants(connection))
        )
        plans = rules.plan_push(files, moved.branch, moved.repository, grants, known_hosts)
        refused = [plan for plan in plans if isinstance(plan, rules.Refusal)]
        made: list[tuple[Rollout, rules.Plan]] = []
        for plan in plans:
            if isinstance(plan, rules.Plan):
                drawn = await self._draw(plan, moved, event)
                if isinstance(drawn, Rollout):
                    made.append((drawn, plan))
                else:
                    refused.append(drawn)

        def apply(connection: Connection) -> None:
            if repositories.heads(connection, moved.repository).get(moved.branch) != moved.commit:
                return  # a newer head has an event of its own
            for refusal in refused:
                _record_refusal(connection, moved, refusal)
            for rollout, plan in made:
                advance.enqueue(connection, rollout, plan.hosts, plan.warnings)

        if made or refused:
            await self._db.write(apply)

    async def files(self, repository: str, commit: str) -> list[ServiceFile]:
        """The service files of a commit.

        Raises:
            InvalidInputError: One of them is faulty; the sentence names file, line and column.
        """
        paths = find(await self.mirrors.files(repository, commit))
        blobs = await asyncio.gather(*(self.mirrors.blob(repository, commit, path) for path in paths))
        files = [parse(blob, path) for path, blob in zip(paths, blobs, strict=True)]
        distinct(files)
        return files

    async def rollout(self, plan: rules.Plan, moved: BranchMoved, event: Event) -> Rollout:
        """A rollout of a plan, not yet kept.

        Raises:
            InvalidInputError: The commit lacks the variables that it names.
        """
        environment, file = plan.environment, plan.file
        locked = ""
        if environment.variables:
            try:
                blob = await self.mirrors.blob(moved.repository, moved.commit, environment.variables)
                locked = canonical.digest(blob)
            except NotFoundError as error:
                raise InvalidInputError(
                    f"{file.path} names {environment.variables} for {environment.name}, which is not in the commit.",
                    f"waybill lock {environment.name} makes it; then commit it.",
                ) from error
        before = [file.functions[name] for name in environment.before if name in file.functions]
        budget = sum(function.timeout for function in before)
        order: Order = environment.order
        if order == "together" and any(function.once for function in before):
            order = "first-then-rest"
        return Rollout(
            id=new_id(),
            service=file.service,
            environment=environment.name,
            repository=moved.repository,
            branch=moved.branch,
            commit=moved.commit,
            file=file.path,
            cause="push",
            actor=event.actor,
            state="waiting",
            created=stamp(),
            origin=event.id,
            order=order,
            needs_build=file.build is not None,
            locked=locked,
            limit=HOST_SLACK + budget + (environment.health.within if environment.health else 0.0),
        )

    async def _note_trouble(self, repository: Repository, trouble: str) -> None:
        if repository.trouble != trouble:
            await self._db.write(lambda connection: _note_trouble(connection, repository.name, trouble))

    async def _draw(self, plan: rules.Plan, moved: BranchMoved, event: Event) -> Rollout | rules.Refusal:
        try:
            return await self.rollout(plan, moved, event)
        except WaybillError as error:
            names = {"service": plan.file.service, "environment": plan.environment.name}
            return rules.Refusal(**names, reason=error.reason, hint=error.hint)

    async def _refuse(self, moved: BranchMoved, error: WaybillError) -> None:
        refusal = rules.Refusal(service="", environment="", reason=error.reason, hint=error.hint)
        await self._db.write(lambda connection: _record_refusal(connection, moved, refusal))


def _note_trouble(connection: Connection, name: str, trouble: str) -> None:
    """Say once that a repository went away, and once that it is back."""
    if repositories.set_trouble(connection, name, trouble):
        body = RepositoryAway(repository=name, reason=trouble) if trouble else RepositoryBack(repository=name)
        outbox.record(connection, body, "waybill")


def _record_refusal(connection: Connection, moved: BranchMoved, refusal: rules.Refusal) -> None:
    body = DeploymentRefused(
        repository=moved.repository,
        branch=moved.branch,
        commit=moved.commit,
        reason=refusal.reason,
        hint=refusal.hint,
        service=refusal.service,
        environment=refusal.environment,
    )
    outbox.record(connection, body, "waybill")
