"""The command line in processes of its own, against a real server: what people read, and what programs read."""

import asyncio
import json
import re
import stat
import subprocess

import pytest

from support.server import serving
from waybill.core.clock import later, stamp
from waybill.deploy.model import Rollout
from waybill.deploy.store import hosts as host_store
from waybill.deploy.store import rollouts as rollout_store
from waybill.events import outbox
from waybill.wire.agent import Report

pytestmark = pytest.mark.flow

FILE = """\
service: hello
environments:
  production:
    branches: [main]
    hosts: {role: web}
    run: {driver: process, command: [./hello], port: 8080}
    health: {path: /health, within: 10s}
"""


@pytest.fixture
def database_url(tmp_path):
    """The command line knows nothing of databases: one kind suffices."""
    return f"sqlite:///{tmp_path / 'waybill.sqlite'}"


@pytest.fixture
async def server(db, tmp_path):
    async with serving(db, tmp_path / "server") as served:
        yield served


def rollout(**fields):
    values = {
        "id": "01900000-0000-7000-8000-000000000001",
        "service": "hello",
        "environment": "production",
        "repository": "team/hello",
        "branch": "main",
        "commit": "c0ffee" + "0" * 34,
        "file": "waybill.yml",
        "cause": "push",
        "actor": "hook:1",
        "state": "running",
        "created": stamp(),
        "origin": "01900000-0000-7000-8000-000000000009",
    }
    return Rollout(**(values | fields))


async def keep(server, made, hosts=("web-1",)):
    await server.context.db.write(lambda c: rollout_store.add_rollout(c, made, list(hosts)))


async def test_a_log_in_is_kept_for_this_person_alone_and_serves_the_next_commands(server):
    bare = {"WAYBILL_SERVER": "", "token": ""}
    status, out, err = await server.cli("login", server.url, stdin=server.admin + "\n", **bare)
    assert (status, err) == (0, "")
    kept = server.folder / "config" / "waybill" / "cli.toml"
    assert out.splitlines() == [
        "You are the admin, admin of everything.",
        f"Kept in {kept}, for you alone.",
        "Next: waybill enroll --label role=web, for a token with which a machine becomes a host.",
    ]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert (await server.cli("status", **bare))[:2] == (0, "Nothing is deployed yet, and nothing is granted.\n")
    status, _, err = await server.cli("login", server.url, stdin="wbt_wrong\n", **bare)
    assert status == 3
    assert err.startswith("waybill: this is no Waybill token.\n")
    assert (await server.cli("status", **bare))[0] == 0
    status, _, err = await server.cli("status", WAYBILL_SERVER="http://127.0.0.1:9", token="")
    assert status == 7  # the kept token is not sent to another server; nobody listens there
    assert "127.0.0.1:9 cannot be reached" in err


async def test_an_admin_sets_a_team_up(server, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "waybill.yml").write_text(FILE)
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *identity, *words], cwd=folder, check=True)
    status, out, err = await server.cli("repository", "add", "team/hello", str(folder))
    assert (status, err) == (0, "")
    assert out.startswith("team/hello is known with 1 branch.")
    ssh = ["repository", "add", "team/other", "git@127.0.0.1:other.git", "--new-deploy-key"]
    for more, told in (
        (["--json"], "--json is for programs"),
        (["--deploy-key", "key"], "Choose one of them."),
        (["--known-hosts", str(folder / "waybill.yml")], "nobody is there to say so"),
    ):
        status, out, err = await server.cli(*ssh, *more)
        assert (status, told in err) == (2, True), err
    assert "ssh-ed25519 " in out
    status, _, err = await server.cli("repository", "add", "team/other", str(folder), "--new-deploy-key")
    assert (status, "is not reached by SSH" in err) == (2, True)
    words = ["--repository", "team/hello", "--branch", "main", "--host", "role=web"]
    status, out, _ = await server.cli("grant", "hello/production", *words)
    assert out.splitlines() == [
        "team/hello may deploy hello/production from main to hosts with role=web.",
        "Next: push to main; what is there already: waybill deploy hello/production main",
    ]
    status, out, _ = await server.cli("grant", "list")
    assert out.splitlines()[1].split() == ["hello/production", "team/hello", "main", "role=web"]
    made = await server.cli_json("enroll", "-l", "role=web", "--uses", "3", "--within", "12h")
    assert (made["labels"], made["uses"], made["token"][:5]) == ({"role": "web"}, 3, "wbe1.")
    status, out, _ = await server.cli("token", "create", "ci", "--role", "deployer", "--services", "hello")
    ci = out.strip()
    assert (await server.cli("token", "list", token=ci))[0] == 4
    status, _, err = await server.cli("deploy", "hello/production", token=ci)
    assert status == 4
    assert err.splitlines() == [
        "waybill: no enrolled host carries role=web, which hello/production asks for.",
        "  waybill hosts lists hosts with their labels.",
    ]
    status, out, _ = await server.cli("hosts")
    assert out == "No host is enrolled yet: waybill enroll.\n"
    status, out, _ = await server.cli("events")
    lines = out.splitlines()
    assert lines[0].endswith(f"repository team/hello: added, {folder}  [token:the admin]")
    assert len(lines) == 4


async def test_status_shows_what_runs_what_failed_and_what_to_do(server):
    live = Report(
        service="hello",
        environment="production",
        sequence=3,
        state="live",
        at=later(-125),
        live_sequence=3,
        live_commit="c0ffee" + "0" * 34,
        health="failing",
    )
    await server.context.db.write(lambda c: host_store.put_report(c, "web-1", live))
    await keep(server, rollout(state="failed", reason="web-1: no answer on port 8080", finished=later(-65)))
    status, out, _ = await server.cli("status", "hello")
    lines = out.splitlines()
    assert status == 0
    assert lines[0].split() == ["SERVICE", "HOST", "COMMIT", "STATE", "HEALTH", "SAID"]
    assert " ".join(lines[1].split()) == "hello/production web-1 c0ffee000000 live not connected 2 min ago"
    assert "hello/production: c0ffee000000 failed 1 min ago: web-1: no answer on port 8080" in lines
    assert any(line.startswith("hello/production: orphaned on web-1: no grant covers it") for line in lines)
    assert (await server.cli("status", "other"))[1] == "Nothing is called other.\n"
    told = await server.cli_json("status")
    assert told["environments"][0]["hosts"][0]["live_commit"].startswith("c0ffee")


async def test_a_rollout_is_followed_and_the_exit_status_says_how_it_ended(server):
    for state, expected in (("done", 0), ("failed", 8), ("superseded", 8)):
        identity = f"01900000-0000-7000-8000-00000000000{len(state)}"
        await keep(server, rollout(id=identity, origin=identity))
        following = asyncio.create_task(server.cli("rollout", "show", identity, "--follow"))
        seen = await times_shown(server)
        async with asyncio.timeout(30):
            while await times_shown(server) < seen + 3:
                await asyncio.sleep(0.02)
        await server.context.db.write(lambda c, i=identity, s=state: rollout_store.finish(c, i, s, "that is why"))
        status, out, err = await following
        lines = out.splitlines()
        assert lines[0] == "hello/production c0ffee000000: running"
        assert f"hello/production c0ffee000000: {state}: that is why" in lines
        assert status == expected
        if expected:
            assert err.startswith(f"waybill: hello/production c0ffee000000 is {state}: that is why\n")


async def times_shown(server):
    found = re.search(r'route="/api/rollouts/{identity}",status="200"} (\d+)', await figures(server))
    return int(found[1]) if found else 0


async def figures(server):
    response = await server.client.get("/metrics", headers={"authorization": f"Bearer {server.admin}"})
    return response.text


async def test_rollouts_are_listed_cancelled_and_shown_with_what_hosts_saw(server):
    await keep(server, rollout(state="waiting"))
    status, out, _ = await server.cli("rollout", "list", "hello/production")
    assert out.splitlines()[1].split()[:4] == [rollout().id, "hello/production", "c0ffee000000", "main"]
    status, out, _ = await server.cli("cancel", "hello/production", "--reason", "wrong branch")
    assert (status, out) == (
        0,
        "hello/production c0ffee000000 is cancelled: cancelled by token:the admin: wrong branch\n",
    )
    status, _, err = await server.cli("cancel", "hello/production")
    assert (status, err.splitlines()[0]) == (5, "waybill: nothing is under way in hello/production.")
    status, out, _ = await server.cli("rollout", "show", rollout().id[:20])
    assert out.splitlines()[0] == "hello/production c0ffee000000 (main): cancelled"


async def test_logs_come_from_all_hosts_line_by_line(server):
    for name in ("web-1", "web-2"):
        report = Report(service="hello", environment="production", sequence=1, state="live", at=stamp())
        await server.context.db.write(lambda c, n=name, r=report: host_store.put_report(c, n, r))
    server.hosts_here.add("web-1")
    asking = asyncio.create_task(server.cli("logs", "hello/production", "-n", "2"))
    async with asyncio.timeout(30):
        while len(server.asked) < 2:
            await asyncio.sleep(0.02)
    identity = next(message.id for host, message in server.asked if host == "web-1")
    server.context.logs.push(identity, ["GET / 200", "GET /x 404 [bold]"], end=True)
    status, out, err = await asking
    assert (status, out) == (0, "web-1 | GET / 200\nweb-1 | GET /x 404 [bold]\n")
    assert err == "web-2: not connected\n"


async def test_events_are_followed_as_json_lines(server):
    await server.call("POST", "/api/tokens", {"name": "before", "role": "viewer"})
    process = asyncio.create_task(server.cli("events", "-f", "--json"))
    async with asyncio.timeout(30):
        while 'route="/api/events/stream"' not in await figures(server):
            await asyncio.sleep(0.02)
    await server.call("POST", "/api/tokens", {"name": "while", "role": "viewer"})
    await asyncio.sleep(0.2)
    server.context.stopping.set()
    status, out, err = await process
    found = [json.loads(line) for line in out.splitlines() if '"seq"' in line]
    assert [one["body"]["name"] for one in found] == ["before", "while"]
    assert (status, err.splitlines()[0]) == (7, "waybill: the server ended the stream.")


async def test_doctor_names_what_was_set_aside_and_tries_it_again(server):
    def aside(connection):
        outbox.wake(connection, "sync", "team/hello")
        connection.execute(
            outbox.work_table.update().values(aside=True, attempts=12, error="git fetch failed: not found")
        )

    await server.context.db.write(aside)
    status, out, err = await server.cli("doctor")
    assert status == 1
    assert "fault  work set aside: sync team/hello failed 12 times, last with: git fetch failed: not found" in out
    assert "         Mend the cause, then: waybill doctor --retry." in out
    assert err.startswith("waybill: ")
    status, out, err = await server.cli("doctor", "--retry")
    assert status == 0, out + err
    assert await server.context.db.read(outbox.set_aside) == []
    found = await server.cli_json("doctor")
    assert {one["check"] for one in found} >= {"server", "clock", "plug-ins", "public address"}
    assert any("forges forgejo, generic, gitea, github, gitlab" in one["sentence"] for one in found)


async def test_output_has_no_colours_in_a_pipe_and_errors_are_json_for_programs(server):
    await keep(server, rollout())
    status, out, _ = await server.cli("rollout", "list")
    assert "\x1b" not in out
    assert len(out.splitlines()) == 2  # nothing is wrapped for a screen that is not there
    status, out, err = await server.cli("rollout", "show", "nothing", "--json")
    assert status == 5
    assert json.loads(out)["error"] == "no rollout has the id 'nothing'."
    status, out, err = await server.cli("status", token="wbt_bad")
    assert (status, out) == (3, "")
    assert "Traceback" not in err
