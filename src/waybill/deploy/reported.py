"""What hosts and builders say: kept, and the rollouts that wait for it go on."""

from __future__ import annotations

import msgspec

from waybill.core.errors import ConflictError
from waybill.deploy import advance
from waybill.deploy.events import BuildEnded, HostReported
from waybill.deploy.store import hosts as host_store
from waybill.deploy.store import rollouts as store
from waybill.events import outbox
from waybill.infra.db import Connection, Database
from waybill.wire.agent import FINAL, Report, Reports


class Reported:
    """The inbox of hosts and builders.

    Args:
        db: The database.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    async def reported(self, host: str, said: Reports, serial: str | None = None) -> None:
        """Keep what a host says, and let the rollouts that wait for it go on.

        Args:
            host: Its name.
            said: What it says.
            serial: Of the certificate that it came with, let in by the same write; None when it is let in already.

        Raises:
            ForbiddenError: The certificate with this serial is not, or no longer, the host's.
        """

        def apply(connection: Connection) -> None:
            if serial is not None:
                host_store.admit(connection, host, serial)
            if said.facts is not None:
                facts = msgspec.json.encode(said.facts).decode()
                host_store.put_facts(connection, host, said.facts.arch[:32], facts)
            for report in said.reports:
                _keep(connection, host, report)

        await self._db.write(apply)

    async def built(self, build: str, host: str, digest: str, size: int) -> None:
        """A builder delivered."""

        def apply(connection: Connection) -> None:
            row = store.build(connection, build)
            if row.state == "there":
                return
            store.set_build(connection, build, state="there", digest=digest, size=size)
            host_store.untell(connection, host, f"build:{build}")
            body = BuildEnded(build=build, service=row.service, commit=row.commit, digest=digest, size=size)
            outbox.record(connection, body, f"host:{host}")
            for rollout in store.waiting_for(connection, row):
                outbox.wake(connection, advance.HANDLER, rollout.key)

        await self._db.write(apply)

    async def build_failed(self, build: str, host: str, reason: str, output: str) -> None:
        """A builder could not deliver."""

        def apply(connection: Connection) -> None:
            row = store.build(connection, build)
            if row.state == "there":
                return
            store.set_build(connection, build, state="failed", reason=reason[:1000], output=output[-8000:])
            host_store.untell(connection, host, f"build:{build}")
            body = BuildEnded(
                build=build, service=row.service, commit=row.commit, reason=reason[:1000], output=output[-4000:]
            )
            outbox.record(connection, body, f"host:{host}")
            for rollout in store.waiting_for(connection, row):
                outbox.wake(connection, advance.HANDLER, rollout.key)

        await self._db.write(apply)

    async def posted_build(self, service: str, repository: str, commit: str, file: str, digest: str, size: int) -> str:
        """Continuous integration posted a packed result; returns the build's id. The first result of a commit stays."""

        def apply(connection: Connection) -> str:
            row = store.build_for(connection, service=service, repository=repository, commit=commit, file=file)
            if row.state == "there" and row.digest != digest:
                raise ConflictError(f"{service} {commit[:12]} is built already, as {row.digest}.")
            store.set_build(connection, row.id, state="there", digest=digest, size=size)
            for rollout in store.waiting_for(connection, row):
                outbox.wake(connection, advance.HANDLER, rollout.key)
            return row.id

        return await self._db.write(apply)


def _keep(connection: Connection, host: str, report: Report) -> None:
    before = host_store.put_report(connection, host, report)
    key = (report.service, report.environment)
    if store.set_host_state(connection, host, key, report.sequence, report.state, report.reason[:1000]):
        outbox.wake(connection, advance.HANDLER, f"{report.service}/{report.environment}")
    news = before is None or (before.sequence, before.state) != (report.sequence, report.state)
    if news and report.state in FINAL:
        body = HostReported(
            host=host,
            service=report.service,
            environment=report.environment,
            sequence=report.sequence,
            state=report.state,
            commit=report.live_commit,
            reason=report.reason[:1000],
            evidence=report.evidence[:4096],
            took=report.took,
        )
        outbox.record(connection, body, f"host:{host}")
