"""What people ask of deploying: deploy, roll back, cancel, remove."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from waybill.core.clock import stamp
from waybill.core.errors import ConflictError, ForbiddenError, NotFoundError
from waybill.core.ids import new_id
from waybill.deploy import advance, rules
from waybill.deploy.events import BranchMoved, Changed
from waybill.deploy.model import Rollout
from waybill.deploy.pushes import Pushes
from waybill.deploy.store import hosts as host_store
from waybill.deploy.store import repositories
from waybill.deploy.store import rollouts as store
from waybill.events import outbox
from waybill.events.model import Again, Event
from waybill.events.outbox import Work
from waybill.infra.db import Connection, Database
from waybill.wire.agent import Remove


class Deployments:
    """What people ask of deploying, and the handler that moves rollouts on.

    Args:
        db: The database.
        pushes: Reads repositories and draws rollouts.
    """

    def __init__(self, db: Database, pushes: Pushes) -> None:
        self._db = db
        self._pushes = pushes

    async def deploy(self, service: str, environment: str, ref: str, actor: str) -> Rollout:
        """Deploy a branch head or a commit that the mirror holds, within the grants.

        Raises:
            NotFoundError: There is no such grant, branch or commit, or the commit has no such service.
            ForbiddenError: The grant does not cover the branch or the hosts.
        """
        grant = await self._db.read(lambda connection: repositories.grant_of(connection, service, environment))
        if grant is None:
            raise NotFoundError(
                f"{service}/{environment} has no grant.",
                f"An admin grants it: waybill grant {service}/{environment} --repository NAME --branch main",
            )
        repository = await self._db.read(lambda connection: repositories.repository(connection, grant.repository))
        heads = await self._pushes.mirrors.fetch(repository)
        commit = heads.get(ref) or await self._pushes.mirrors.resolve(grant.repository, ref)
        branch = ref if ref in heads else await self._branch_of(grant.repository, heads, commit, grant.branches)
        files = [file for file in await self._pushes.files(grant.repository, commit) if file.service == service]
        if not files or environment not in files[0].environments:
            raise NotFoundError(f"{commit[:12]} describes no {service}/{environment} in a waybill.yml.")
        chosen = files[0].environments[environment]
        known_hosts = await self._db.read(host_store.hosts)
        narrowed = msgspec.structs.replace(files[0], environments={environment: chosen})
        plans = rules.plan_push([narrowed], branch, grant.repository, [grant], known_hosts)
        if not plans:
            raise ForbiddenError(
                f"{files[0].path} does not let branch {branch} deploy {service}/{environment}.",
                f"It names {', '.join(chosen.branches)}.",
            )
        plan = plans[0]
        if isinstance(plan, rules.Refusal):
            raise ForbiddenError(plan.reason, plan.hint)
        moved = BranchMoved(repository=grant.repository, branch=branch, commit=commit)
        event = Event(id=new_id(), seq=0, at=stamp(), actor=actor, body=moved)
        rollout = msgspec.structs.replace(await self._pushes.rollout(plan, moved, event), cause="deploy")
        await self._db.write(lambda connection: advance.enqueue(connection, rollout, plan.hosts, plan.warnings))
        return rollout

    async def rollback(self, service: str, environment: str, to: str, actor: str) -> Rollout:
        """Go back to a known-good rollout (its id, or empty for the one before the present) with its own variables.

        Raises:
            NotFoundError: There is no known-good rollout to go back to.
        """

        def apply(connection: Connection) -> Rollout:
            done = store.rollouts(connection, service, environment, ["done"])
            present = store.good(connection, service, environment)
            current = next((one for one in done if one.id == present), None)
            if to:
                target = next((one for one in done if one.id.startswith(to) or one.commit.startswith(to)), None)
            else:
                target = next((one for one in done if current and not _same(one, current)), None)
            if target is None:
                wanted = f"known-good release {to}" if to else "earlier known-good release"
                raise NotFoundError(
                    f"{service}/{environment} has no {wanted}.",
                    "waybill rollout list shows what was live.",
                )
            grant = repositories.grant_of(connection, service, environment)
            if grant is None or grant.repository != target.repository:
                raise ForbiddenError(f"{service}/{environment} is no longer granted to {target.repository}.")
            names = [host.host for host in store.rollout_hosts(connection, target.id)]
            kept = [host.name for host in host_store.hosts(connection) if host.name in names and not host.revoked]
            rollout = msgspec.structs.replace(
                target,
                id=new_id(),
                origin=new_id(),
                cause="rollback",
                actor=actor,
                state="waiting",
                created=stamp(),
                sequence=0,
                previous="",
                manifest="",
                outcome="",
                reason=f"back to {target.commit[:12]}",
                started="",
                finished="",
            )
            advance.enqueue(connection, rollout, kept, ())
            return rollout

        return await self._db.write(apply)

    async def cancel(self, rollout: str, actor: str, reason: str) -> Rollout:
        """Stop a rollout that has not ended, on the hosts too; switched hosts go back to what was good."""

        def apply(connection: Connection) -> Rollout:
            found = store.rollout(connection, rollout)
            why = f"cancelled by {actor}" + (f": {reason}" if reason else "")
            if found.finished:
                raise ConflictError(f"rollout {found.id} is {found.state} already.")
            cancelled = advance.cancel(connection, found, why)
            outbox.wake(connection, advance.HANDLER, found.key)
            return cancelled

        return await self._db.write(apply)

    async def remove(self, host: str, service: str, environment: str, actor: str) -> None:
        """Take a service off a host: the one instruction that stops it there."""

        def apply(connection: Connection) -> None:
            host_store.host(connection, host)
            revision = host_store.next_revision(connection)
            message = Remove(revision=revision, service=service, environment=environment, by=actor)
            host_store.tell(connection, {host: message}, f"{service}/{environment}")
            change = f"{service}/{environment} is removed from it"
            outbox.record(connection, Changed(what="host", name=host, change=change), actor)

        await self._db.write(apply)

    async def advance(self, work: Work) -> Again | None:
        """Handler: move the rollouts of ``service/environment`` on."""
        service, _, environment = work.key.partition("/")

        def apply(connection: Connection) -> float | None:
            outbox.check(connection, work)
            return advance.advance(connection, service, environment)

        pause = await self._db.write(apply)
        return None if pause is None else Again(pause)

    async def _branch_of(self, repository: str, heads: dict[str, str], commit: str, granted: Sequence[str]) -> str:
        for branch, head in heads.items():
            if rules.matches(branch, granted) and await self._pushes.mirrors.descends(repository, commit, head):
                return branch
        raise ForbiddenError(f"{commit[:12]} is on no branch that the grant names: {', '.join(granted)}.")


def _same(one: Rollout, other: Rollout) -> bool:
    return (one.commit, one.build, one.locked, one.file) == (other.commit, other.build, other.locked, other.file)
