"""What the API does with hosts, grants, repositories, rollouts, events, logs and builds; on both databases."""

import asyncio
import base64
import hashlib
import hmac
import json
import subprocess

import msgspec
import pytest
from cryptography import x509

from support.server import serving
from waybill.agent.enrol import make_identity, read_token, request
from waybill.core.clock import later, stamp
from waybill.deploy.store import hosts as host_store
from waybill.deploy.store import rollouts as rollout_store
from waybill.vault.identity import fingerprint
from waybill.wire.agent import Enrolled, Facts, LogsWanted, Report

FILE = """\
service: hello
build: {command: [make], output: dist/}
environments:
  production:
    branches: [main]
    hosts: {role: web}
    run: {driver: process, command: [./hello], port: 8080}
    health: {path: /health, within: 10s}
  staging:
    branches: [main]
    hosts: {role: web}
    run: {driver: process, command: [./hello], port: 8081}
"""


@pytest.fixture
async def server(db, tmp_path):
    async with serving(db, tmp_path / "server") as served:
        yield served


def git(folder, *words):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with one commit on main."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "waybill.yml").write_text(FILE)
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


FACTS = Facts(version="0.1.0", arch="x86_64", system="Debian 12", at="2026-01-01T00:00:00.000Z")


async def enrol(server, name, labels=None, wanted=None):
    """A host enrols as the agent does; (status, answer, its identity)."""
    if wanted is None:
        _, made = await server.call("POST", "/api/enrolments", {"labels": labels or {"role": "web"}})
        wanted = read_token(made["token"])
    identity = make_identity(name)
    body = msgspec.to_builtins(request(wanted, name, identity, FACTS))
    status, answer = await server.call("POST", "/api/enrol", body, token="")
    return status, answer, identity


async def set_up(server, repository):
    await enrol(server, "web-1")
    status, told = await server.call("POST", "/api/repositories", {"name": "team/hello", "url": str(repository)})
    assert status == 201, told
    body = {"repository": "team/hello", "branches": ["main"], "hosts": {"role": "web"}}
    for environment in ("production", "staging"):
        status, told = await server.call("PUT", f"/api/grants/hello/{environment}", body)
        assert status == 200, told
    return git(repository, "rev-parse", "HEAD")


async def test_a_host_enrols_with_the_agents_own_words_and_carries_the_tokens_labels(server):
    status, answer, identity = await enrol(server, "web-1", {"role": "web", "zone": "a"})
    assert status == 201
    enrolled = msgspec.convert(answer, Enrolled)
    certificate = x509.load_pem_x509_certificate(enrolled.certificate.encode())
    root = x509.load_pem_x509_certificate(enrolled.ca.encode())
    certificate.verify_directly_issued_by(root)
    assert certificate.subject.rfc4514_string() == "CN=web-1"
    assert enrolled.labels == {"role": "web", "zone": "a"}
    _, [host] = await server.call("GET", "/api/hosts")
    assert (host["name"], host["labels"], host["connected"]) == ("web-1", {"role": "web", "zone": "a"}, False)
    assert host["fingerprint"] == fingerprint(identity.recipient)
    _, events = await server.call("GET", "/api/events")
    assert events[-1]["kind"] == "HostEnrolled"


async def test_an_enrolment_token_carries_the_fingerprint_and_is_used_up(server):
    _, made = await server.call("POST", "/api/enrolments", {"labels": {"role": "web"}, "uses": 2})
    text = made["token"].removeprefix("wbe1.")
    body = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    assert body == {
        "url": server.url,
        "id": made["id"],
        "secret": body["secret"],
        "ca": server.context.authority.fingerprint,
    }
    token = read_token(made["token"])
    assert (await enrol(server, "a", wanted=token))[0] == 201
    assert (await enrol(server, "a", wanted=token))[0] == 409
    assert (await enrol(server, "b", wanted=token))[0] == 201
    status, told, _ = await enrol(server, "c", wanted=token)
    assert (status, told["detail"]) == (403, "this enrolment token is unknown, used up or expired.")


async def test_an_enrolment_whose_proof_does_not_fit_changes_nothing(server):
    _, made = await server.call("POST", "/api/enrolments", {})
    token = read_token(made["token"])
    identity = make_identity("h")
    body = msgspec.to_builtins(request(token, "h", identity, FACTS))
    other = make_identity("h")
    for change in (
        {"name": "other"},
        {"csr": other.csr},
        {"recipient": other.recipient},
        {"proof": ""},
        {"proof": "é" * 64},
        {"proof": hmac.new(token.secret.encode(), b"", hashlib.sha256).hexdigest()},
    ):
        status, told = await server.call("POST", "/api/enrol", body | change, token="")
        assert (status, told["detail"]) == (401, "the proof does not fit this enrolment token."), change
    assert (await server.call("GET", "/api/hosts"))[1] == []
    assert (await server.call("POST", "/api/enrol", body, token=""))[0] == 201


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "-a", "x" * 64, "a\nb", "a\x00b"])
async def test_a_host_with_an_unsound_name_is_not_enrolled(server, name):
    _, made = await server.call("POST", "/api/enrolments", {})
    status, _, _ = await enrol(server, "fine", wanted=read_token(made["token"]))
    assert status == 201
    _, made = await server.call("POST", "/api/enrolments", {})
    token = read_token(made["token"])
    identity = make_identity("fine")
    body = msgspec.to_builtins(request(token, name, identity, FACTS))
    assert (await server.call("POST", "/api/enrol", body, token=""))[0] == 400
    assert len((await server.call("GET", "/api/hosts"))[1]) == 1


async def test_labels_belong_to_admins_and_a_revoked_host_loses_its_sealed_keys(server):
    await enrol(server, "web-1")
    armor = "-----BEGIN AGE ENCRYPTED FILE-----\nx\n-----END AGE ENCRYPTED FILE-----\n"
    assert (await server.call("PUT", "/api/hosts/web-1/labels", {"labels": {"role": "db"}}))[1]["labels"] == {
        "role": "db"
    }
    path = "/api/sealed/hello/production"
    assert (await server.call("PUT", f"{path}/web-1", {"armor": "secret"}))[0] == 400
    assert (await server.call("PUT", f"{path}/nobody", {"armor": armor}))[0] == 404
    assert (await server.call("PUT", f"{path}/web-1", {"armor": armor}))[0] == 204
    assert (await server.call("GET", path))[1] == {"web-1": armor}
    assert (await server.call("POST", "/api/hosts/web-1/revoke"))[0] == 204
    assert (await server.call("GET", path))[1] == {}
    assert (await server.call("PUT", f"{path}/web-1", {"armor": armor}))[0] == 403
    assert (await server.call("GET", "/api/hosts"))[1][0]["revoked"] is True


async def test_a_grant_belongs_to_one_repository_that_is_known(server, repository):
    await set_up(server, repository)
    await server.call("POST", "/api/repositories", {"name": "other", "url": str(repository)})
    status, told = await server.call("PUT", "/api/grants/hello/production", {"repository": "other", "branches": ["*"]})
    assert (status, told["detail"]) == (409, "hello/production is granted to team/hello.")
    assert (await server.call("DELETE", "/api/grants/hello/production"))[0] == 204
    assert (await server.call("DELETE", "/api/grants/hello/production"))[0] == 404
    assert [grant["environment"] for grant in (await server.call("GET", "/api/grants"))[1]] == ["staging"]


async def test_a_repository_that_cannot_be_read_is_not_added_and_leaves_no_credential(server, tmp_path):
    body = {"name": "r", "url": str(tmp_path / "nothing"), "https_token": "hunter2-hunter2"}
    status, told = await server.call("POST", "/api/repositories", body)
    assert status == 503
    assert "hunter2" not in str(told)
    assert (await server.call("GET", "/api/repositories"))[1] == []
    assert not [path for path in (server.folder / "keys").iterdir() if path.name.startswith("repo-")]


async def test_credentials_of_a_repository_are_kept_and_never_shown(server, repository):
    body = {"name": "r", "url": str(repository), "https_token": "hunter2-hunter2", "deploy_key": "KEY\r\nLINES"}
    assert (await server.call("POST", "/api/repositories", body))[0] == 201
    _, [shown] = await server.call("GET", "/api/repositories")
    assert sorted(shown["credentials"]) == ["ssh", "token"]
    assert "hunter2" not in str(shown)
    for path in (server.folder / "keys").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert (await server.call("POST", "/api/repositories", {"name": "r", "url": str(repository)}))[0] == 201
    assert sorted((await server.call("GET", "/api/repositories"))[1][0]["credentials"]) == ["ssh", "token"]
    for url in ("https://user:secret@example.org/r", "ext::sh -c id", "--upload-pack=x", "ftp://x/y"):
        assert (await server.call("POST", "/api/repositories", {"name": "s", "url": url}))[0] == 400, url


async def test_deploy_within_the_grant_cancel_and_what_status_says(server, repository):
    commit = await set_up(server, repository)
    body = {"service": "hello", "environment": "production", "ref": "main"}
    status, rollout = await server.call("POST", "/api/deploy", body)
    assert status == 201, rollout
    assert (rollout["commit"], rollout["state"], rollout["actor"]) == (commit, "waiting", "token:the admin")
    _, detail = await server.call("GET", f"/api/rollouts/{rollout['id'][:30]}")
    assert [host["host"] for host in detail["hosts"]] == ["web-1"]
    assert detail["ended"] is False
    _, told = await server.call("GET", "/api/status")
    production = next(one for one in told["environments"] if one["environment"] == "production")
    assert [one["id"] for one in production["running"]] == [rollout["id"]]
    viewer = await server.token("viewer")
    assert (await server.call("POST", f"/api/rollouts/{rollout['id']}/cancel", {}, token=viewer))[0] == 403
    status, cancelled = await server.call("POST", f"/api/rollouts/{rollout['id']}/cancel", {"reason": "oops"})
    assert (status, cancelled["state"]) == (200, "cancelled")
    assert cancelled["reason"] == "cancelled by token:the admin: oops"
    assert (await server.call("POST", f"/api/rollouts/{rollout['id']}/cancel", {}))[0] == 409
    assert (await server.call("POST", "/api/deploy", body | {"ref": "nothing"}))[0] == 404
    status, told = await server.call("POST", "/api/rollback", {"service": "hello", "environment": "production"})
    assert (status, told["hint"]) == (404, "waybill rollout list shows what was live.")


async def test_what_is_no_longer_granted_is_shown_as_orphaned_with_the_command_that_ends_it(server, repository):
    await set_up(server, repository)
    report = Report(
        service="hello",
        environment="production",
        sequence=3,
        state="live",
        at=stamp(),
        live_sequence=3,
        live_commit="c" * 40,
        health="healthy",
    )
    await server.context.db.write(lambda c: host_store.put_report(c, "web-1", report))
    await server.call("DELETE", "/api/grants/hello/production")
    _, told = await server.call("GET", "/api/status")
    production = next(one for one in told["environments"] if one["environment"] == "production")
    [warning] = production["warnings"]
    assert warning.startswith("orphaned on web-1: no grant covers it; it keeps running")
    assert warning.endswith("waybill hosts remove-service web-1 hello/production")
    assert (await server.call("POST", "/api/hosts/web-1/remove", {"service": "hello", "environment": "production"}))[
        0
    ] == 204
    [message] = await server.context.db.read(lambda c: host_store.told_to(c, "web-1"))
    assert '"remove"' in message


async def read_events(server, path, until):
    """The data of server-sent events until ``until`` says so."""
    found = []
    headers = {"authorization": f"Bearer {server.admin}"}
    async with asyncio.timeout(15), server.client.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                found.append(json.loads(line[6:]))
                if until(found):
                    break
    return found


async def test_events_are_followed_without_a_gap_while_they_come(server):
    for number in range(3):
        await server.call("POST", "/api/tokens", {"name": f"before-{number}", "role": "viewer"})
    following = asyncio.create_task(read_events(server, "/api/events/stream?since=1", lambda found: len(found) == 22))
    for number in range(20):
        await server.call("POST", "/api/tokens", {"name": f"after-{number}", "role": "viewer"})
    found = await following
    names = ["before-1", "before-2"] + [f"after-{number}" for number in range(20)]
    assert [event["body"]["name"] for event in found] == names
    _, page = await server.call("GET", "/api/events?limit=5")
    assert [event["seq"] for event in page] == [event["seq"] for event in found[-5:]]


async def test_logs_are_asked_of_the_hosts_and_passed_on(server):
    def reported(connection):
        for name in ("web-1", "web-2", "web-3"):
            report = Report(service="hello", environment="production", sequence=1, state="live", at=later(0))
            host_store.put_report(connection, name, report)

    await server.context.db.write(reported)
    server.hosts_here.update({"web-1", "web-2"})
    path = "/api/logs/hello/production?lines=2&seconds=30"
    following = asyncio.create_task(read_events(server, path, lambda _: False))
    async with asyncio.timeout(10):
        while len(server.asked) < 3:
            await asyncio.sleep(0.01)
    asked = dict(server.asked)
    assert isinstance(asked["web-1"], LogsWanted)
    assert (asked["web-1"].lines, asked["web-1"].seconds) == (2, 30)
    hub = server.context.logs
    assert hub.push(asked["web-1"].id, ["one", "two"], host="web-1")
    assert not hub.push(asked["web-1"].id, ["forged"], host="web-2")
    assert hub.push(asked["web-2"].id, ["three"], end=True)
    assert hub.push(asked["web-1"].id, [], end=True)
    found = await following
    assert {(line["host"], line.get("line", ""), line.get("note", "")) for line in found} == {
        ("web-3", "", "not connected"),
        ("web-1", "one", ""),
        ("web-1", "two", ""),
        ("web-2", "three", ""),
    }
    assert not hub.push(asked["web-1"].id, ["late"])
    assert (await server.call("GET", "/api/logs/hello/production?host=web-3"))[0] == 503
    assert (await server.call("GET", "/api/logs/hello/production?host=web-9"))[0] == 404


async def test_a_watcher_who_leaves_is_forgotten(server):
    report = Report(service="hello", environment="production", sequence=1, state="live", at=later(0))
    await server.context.db.write(lambda c: host_store.put_report(c, "web-1", report))
    server.hosts_here.add("web-1")
    following = asyncio.create_task(read_events(server, "/api/logs/hello/production?seconds=60", len))
    async with asyncio.timeout(10):
        while not server.asked:
            await asyncio.sleep(0.01)
        identity = server.asked[0][1].id
        server.context.logs.push(identity, ["line"])
        await following
        while server.context.logs.push(identity, ["line"]):
            await asyncio.sleep(0.01)


async def test_continuous_integration_posts_a_build_which_stays(server, repository):
    commit = await set_up(server, repository)
    content = bytes(range(256)) * 20_000
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    ci = {"authorization": f"Bearer {await server.token('deployer', services='hello')}"}
    path = f"/api/builds/hello?commit={commit}"
    response = await server.client.put(f"{path}&digest=sha256:{'0' * 64}", content=content, headers=ci)
    assert response.status_code == 400
    response = await server.client.put(f"{path}&digest={digest}", content=content, headers=ci)
    assert response.status_code == 200, response.text
    made = response.json()
    assert (made["digest"], made["size"], made["repository"]) == (digest, len(content), "team/hello")
    assert server.context.blobs.path(digest).read_bytes() == content
    again = await server.client.put(path, content=content, headers=ci)
    assert again.json()["id"] == made["id"]
    other = await server.client.put(path, content=b"other", headers=ci)
    assert other.status_code == 409
    bound = {"authorization": f"Bearer {await server.token('deployer', services='shop')}"}
    assert (await server.client.put(path, content=content, headers=bound)).status_code == 403
    row = await server.context.db.read(lambda c: rollout_store.build(c, made["id"]))
    assert (row.state, row.digest) == ("there", digest)


async def test_a_webhook_address_is_made_shown_and_removed(server, repository):
    await server.call("POST", "/api/repositories", {"name": "team/hello", "url": str(repository)})
    status, made = await server.call("POST", "/api/hooks", {"forge": "gitlab", "repository": "team/hello"})
    assert status == 201
    assert made["url"] == f"{server.url}/hooks/{made['id']}"
    _, [shown] = await server.call("GET", "/api/hooks")
    assert made["secret"] not in str(shown)
    assert (shown["last"], shown["actor"]) == ("", "token:the admin")
    assert (await server.call("POST", "/api/hooks", {"forge": "svn", "repository": "team/hello"}))[0] == 404
    assert (await server.call("DELETE", f"/api/hooks/{made['id']}"))[0] == 204
    assert (await server.call("GET", "/api/hooks"))[1] == []
