"""From a push to rollouts on the server: real git, both databases, hosts that answer by hand."""

import asyncio

import msgspec
import pytest

from support.repos import Repo, git
from waybill.core.clock import stamp
from waybill.core.errors import ConflictError, NotFoundError
from waybill.deploy.events import PushReceived
from waybill.deploy.model import Grant, Host, Repository
from waybill.deploy.store import hosts as host_store
from waybill.deploy.store import repositories
from waybill.deploy.store import rollouts as store
from waybill.events import outbox
from waybill.infra.settings import Settings
from waybill.server.wiring import assemble
from waybill.trust import manifest as manifests
from waybill.wire.agent import Abandon, Desired, Report, Reports

FILE = """\
service: hello
environments:
  production:
    branches: [main]
    hosts: {role: web}
    run: {driver: process, command: [./serve], port: 8080}
    health: {path: /health, within: 5s}
  staging:
    branches: ["*"]
    hosts: {role: stage}
    run: {driver: process, command: [./serve], port: 8080}
    health: {path: /health}
"""


class Team:
    """A server without ports, a repository, three web hosts and a staging host."""

    def __init__(self, parts, repo):
        self.parts, self.repo, self.db = parts, repo, parts.db
        self.sequence = {}

    async def push(self, branch="main", *, force=False):
        self.repo.push(branch, force=force)
        await self.hook(branch)

    async def hook(self, branch="main"):
        await self.db.write(lambda c: outbox.record(c, PushReceived(repository="team/hello", branch=branch), "hook:x"))

    async def told(self, host, about="hello/production"):
        bodies = await self.db.read(lambda c: host_store.told_to(c, host))
        decoded = [msgspec.json.decode(body, type=Desired | Abandon) for body in bodies]
        return next((one for one in decoded if key(one) == about), None)

    async def answer(self, host, state, about="hello/production", reason=""):
        message = await self.told(host, about)
        manifest = manifests.decode(message.manifest)
        report = Report(
            service=manifest.service, environment=manifest.environment, sequence=manifest.sequence, state=state,
            at=stamp(), reason=reason, live_sequence=manifest.sequence if state == "live" else 0,
            live_commit=manifest.commit if state == "live" else "",
        )  # fmt: skip
        await self.parts.reported.reported(host, Reports(reports=[report]))

    async def until(self, seen, seconds=10):
        async with asyncio.timeout(seconds):
            while not (found := await seen()):
                await asyncio.sleep(0.01)
        return found

    async def told_commit(self, host, commit, about="hello/production"):
        async def seen():
            message = await self.told(host, about)
            return isinstance(message, Desired) and manifests.decode(message.manifest).commit == commit and message

        return await self.until(seen)

    async def rollout_is(self, state, commit=None, environment="production"):
        async def seen():
            found = await self.db.read(lambda c: store.rollouts(c, "hello", environment, [state]))
            return next((one for one in found if commit in (None, one.commit)), None)

        return await self.until(seen)

    async def events(self, kind):
        return [event.body for event in await self.db.read(lambda c: outbox.latest_events(c)) if event.kind == kind]


def key(message):
    if isinstance(message, Abandon):
        return f"{message.service}/{message.environment}"
    return manifests.decode(message.manifest).key


@pytest.fixture
async def team(database_url, tmp_path):
    settings = Settings(data=str(tmp_path / "data"), database=database_url, sweep=3600)
    parts = await assemble(settings)
    running = asyncio.create_task(parts.dispatcher.run())
    repo = Repo(tmp_path)
    repo.commit({"README": "hello"})
    repo.push()
    await parts.pushes.add_repository(Repository(name="team/hello", url=str(repo.bare)), "test")

    def prepare(c):
        for name, role in (("web1", "web"), ("web2", "web"), ("stage1", "stage")):
            identity = f"token-{name}"
            host_store.add_enrolment(
                c, {"id": identity, "key": "k", "labels": "{}", "uses": 1, "expires": "9", "actor": "t"}
            )
            host = Host(name=name, labels={"role": role}, recipient="age1", fingerprint="f")
            host_store.add_host(c, identity, host, "1")
            host_store.heard(c, [name])
        for environment, branches, role in (("production", ("main",), "web"), ("staging", ("*",), "stage")):
            grant = Grant(
                id="", repository="team/hello", service="hello", environment=environment, branches=branches,
                hosts={"role": role},
            )  # fmt: skip
            repositories.put_grant(c, grant, "t")

    await parts.db.write(prepare)
    yield Team(parts, repo)
    parts.dispatcher.stop()
    await running
    parts.db.close()


async def test_one_push_deploys_every_matching_environment_and_its_hosts_report_it_live(team):
    commit = team.repo.commit({"waybill.yml": FILE})
    await team.push()
    for host in ("web1", "web2"):
        await team.told_commit(host, commit)
        await team.answer(host, "live")
    done = await team.rollout_is("done", commit)
    assert (await team.rollout_is("running", commit, "staging")).state == "running"
    assert done.manifest
    assert await team.db.read(lambda c: store.good(c, "hello", "production")) == done.id


async def test_a_branch_that_matches_no_environment_deploys_none(team):
    only = FILE.replace('["*"]', "[main]")
    commit = team.repo.commit({"waybill.yml": only})
    await team.push("feature/x")

    async def moved():
        return [body for body in await team.events("BranchMoved") if body.commit == commit]

    await team.until(moved)
    await asyncio.sleep(0.2)
    assert await team.db.read(lambda c: store.rollouts(c)) == []


async def test_doubled_and_late_hooks_change_nothing(team):
    first = team.repo.commit({"waybill.yml": FILE})
    await team.push()
    await team.told_commit("web1", first)
    second = team.repo.commit({"more": "x"})
    await team.push()
    for host in ("web1", "web2"):
        await team.answer(host, "live")
    await team.told_commit("web1", second)
    for _ in range(20):
        await team.hook()
    for host in ("web1", "web2"):
        await team.told_commit(host, second)
        await team.answer(host, "live")
    await team.rollout_is("done", second)
    made = await team.db.read(lambda c: store.rollouts(c, "hello", "production"))
    assert [one.commit for one in made] == [second, first]


async def test_a_failing_host_takes_all_back_to_what_was_good(team):
    good = team.repo.commit({"waybill.yml": FILE})
    await team.push()
    for host in ("web1", "web2"):
        await team.told_commit(host, good)
        await team.answer(host, "live")
    await team.rollout_is("done", good)
    bad = team.repo.commit({"broken": "x"})
    await team.push()
    await team.told_commit("web1", bad)
    await team.answer("web1", "live")
    await team.answer("web2", "failed", reason="GET /health answered 500")
    for host in ("web1", "web2"):
        message = await team.told_commit(host, good)
        assert manifests.decode(message.manifest).sequence == 3
        await team.answer(host, "live")
    reverted = await team.rollout_is("reverted", bad)
    assert "web2: GET /health answered 500" in reverted.reason


async def test_a_first_rollout_that_fails_is_abandoned_and_nothing_is_pretended(team):
    commit = team.repo.commit({"waybill.yml": FILE})
    await team.push()
    await team.told_commit("web1", commit)
    await team.answer("web1", "failed", reason="exit status 1")
    failed = await team.rollout_is("failed", commit)
    assert "exit status 1" in failed.reason
    assert isinstance(await team.told("web2"), Abandon)


async def test_a_newer_push_supersedes_a_waiting_one(team):
    commits = []
    for number in range(3):
        commits.append(team.repo.commit({"waybill.yml": FILE, "n": str(number)}))
        await team.push()

        async def there(commit=commits[-1]):
            return [
                one
                for one in await team.db.read(lambda c: store.rollouts(c, "hello", "production"))
                if one.commit == commit
            ]

        await team.until(there)
    await team.rollout_is("superseded", commits[1])
    assert (await team.rollout_is("running")).commit == commits[0]
    assert (await team.rollout_is("waiting")).commit == commits[2]


async def test_rollback_goes_to_the_release_before_with_its_own_commit_and_cancel_really_stops(team):
    commits = []
    for number in range(2):
        commits.append(team.repo.commit({"waybill.yml": FILE, "n": str(number)}))
        await team.push()
        for host in ("web1", "web2"):
            await team.told_commit(host, commits[-1])
            await team.answer(host, "live")
        await team.rollout_is("done", commits[-1])
    back = await team.parts.deployments.rollback("hello", "production", "", "token:me")
    assert back.commit == commits[0]
    for host in ("web1", "web2"):
        await team.told_commit(host, commits[0])
    cancelled = await team.parts.deployments.cancel(back.id, "token:me", "changed my mind")
    assert cancelled.state == "reverting"
    for host in ("web1", "web2"):
        await team.told_commit(host, commits[1])
        await team.answer(host, "live")
    ended = await team.rollout_is("cancelled")
    assert "changed my mind" in ended.reason
    with pytest.raises(ConflictError):
        await team.parts.deployments.cancel(back.id, "token:me", "")


async def test_a_branch_that_rewrites_its_own_branches_or_hosts_deploys_nothing_and_says_why(team):
    swapped = FILE.replace("{role: stage}", "{role: X}").replace("{role: web}", "{role: stage}")
    team.repo.commit({"waybill.yml": swapped.replace("{role: X}", "{role: web}").replace("[main]", '["*"]')})
    await team.push("evil")

    async def refused():
        return len(await team.events("DeploymentRefused")) >= 2

    await team.until(refused)
    reasons = " ".join(body.reason for body in await team.events("DeploymentRefused"))
    assert "the grant does not: it names main" in reasons
    assert "asks for hosts beyond the grant of hello/staging: web1, web2" in reasons
    assert await team.db.read(lambda c: store.rollouts(c)) == []


async def test_a_faulty_service_file_is_refused_with_its_place(team):
    team.repo.commit({"waybill.yml": FILE.replace("hosts:", "hots:")})
    await team.push()

    async def refused():
        return await team.events("DeploymentRefused")

    [body] = await team.until(refused)
    assert "waybill.yml:5:" in body.reason
    assert "hosts" in body.reason


async def test_a_forced_push_deploys_the_new_head_and_a_deleted_branch_stops_nothing(team):
    team.repo.commit({"waybill.yml": FILE, "n": "1"})
    await team.push()
    await team.told_commit("web1", team.repo.head())
    git(team.repo.work, "commit", "-q", "--amend", "-m", "another")
    await team.push(force=True)

    async def forced():
        return [body for body in await team.events("BranchMoved") if body.forced]

    [body] = await team.until(forced)
    assert body.commit == team.repo.head()
    git(team.repo.bare, "branch", "-D", "main")
    await team.hook()

    async def gone():
        return await team.events("BranchGone")

    await team.until(gone)
    assert isinstance(await team.told("web1"), Desired)


async def test_a_service_whose_paths_are_untouched_is_not_deployed(team):
    both = {"api/waybill.yml": FILE.replace("hello", "api"), "waybill.yml": FILE + "paths: [web/]\n"}
    team.repo.commit(both | {"web/x": "1"})
    await team.push()
    await team.told_commit("web1", team.repo.head())
    before = len(await team.db.read(lambda c: store.rollouts(c)))
    team.repo.commit({"api/y": "2"})
    await team.push()

    async def refused():
        return [body for body in await team.events("DeploymentRefused") if body.commit == team.repo.head()]

    bodies = await team.until(refused)
    assert {body.service for body in bodies} == {"api"}
    assert len(await team.db.read(lambda c: store.rollouts(c))) == before


async def test_missed_hooks_are_caught_by_the_sweep(team):
    commit = team.repo.commit({"waybill.yml": FILE})
    team.repo.push()
    await team.parts.pushes.sweep(None)
    await team.told_commit("web1", commit)


async def test_a_repository_that_vanishes_is_told_and_retried_not_lost(team):
    team.repo.commit({"waybill.yml": FILE})
    moved_away = team.repo.bare.rename(team.repo.bare.with_suffix(".away"))
    await team.hook()

    async def failing():
        def look(c):
            return c.execute(outbox.work_table.select().where(outbox.work_table.c.error != "")).all()

        return await team.db.read(look)

    [row] = await team.until(failing)
    assert "git fetch failed" in row.error
    moved_away.rename(team.repo.bare)
    team.repo.push()
    await team.db.write(lambda c: outbox.wake(c, "sync", "team/hello"))
    await team.told_commit("web1", team.repo.head())


async def test_deploying_by_hand_stays_within_the_grants(team):
    commit = team.repo.commit({"waybill.yml": FILE})
    team.repo.push()
    rollout = await team.parts.deployments.deploy("hello", "production", "main", "token:me")
    assert rollout.commit == commit
    team.repo.commit({"x": "1"})
    team.repo.push("side")
    with pytest.raises(Exception, match="does not let branch side"):
        await team.parts.deployments.deploy("hello", "production", "side", "token:me")
    with pytest.raises(NotFoundError):
        await team.parts.deployments.deploy("hello", "nowhere", "main", "token:me")


async def test_a_server_that_lost_its_past_counts_on_from_what_hosts_report(team):
    report = Report(
        service="hello", environment="production", sequence=41, state="live", at=stamp(), live_sequence=41,
        live_commit="a" * 40,
    )  # fmt: skip
    await team.parts.reported.reported("web1", Reports(reports=[report]))
    commit = team.repo.commit({"waybill.yml": FILE})
    await team.push()
    message = await team.told_commit("web1", commit)
    assert manifests.decode(message.manifest).sequence == 42
