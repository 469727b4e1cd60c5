"""Who may do what over HTTP, and how refusals read; on both databases."""

import asyncio
import io
import logging
import re
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import pytest
import sqlalchemy as sa
import structlog

from support.server import serving
from waybill.core.clock import later
from waybill.deploy.store import hosts as host_store
from waybill.events import outbox
from waybill.infra import logs
from waybill.wire.agent import Report


@pytest.fixture
async def server(db, tmp_path):
    async with serving(db, tmp_path / "server") as served:
        yield served


OPEN = {
    "/api/enrol",
    "/api/schema/openapi.json",
    "/healthz",
    "/readyz",
    "/hooks/{hook_id}",
}  # the proof of the first and the last is their own


async def test_every_address_but_the_open_ones_refuses_who_shows_no_token(server):
    _, schema = await server.call("GET", "/api/schema/openapi.json", token="")
    checked = 0
    for path, methods in schema["paths"].items():
        if path in OPEN:
            continue
        for method in methods:
            filled = path.replace("{", "").replace("}", "")
            status, told = await server.call(method.upper(), filled, token="")
            assert (status, told["detail"]) == (401, "this needs a token."), (method, path)
            checked += 1
    assert checked > 25
    assert (await server.client.get("/metrics")).status_code == 401
    assert (await server.client.get("/healthz")).text == "alive\n"
    assert (await server.client.get("/readyz")).text == "ready\n"


async def test_the_reference_page_names_every_address_and_no_other(server):
    _, schema = await server.call("GET", "/api/schema/openapi.json", token="")
    real = {(method.upper(), path) for path, methods in schema["paths"].items() for method in methods}
    page = (Path(__file__).parents[2] / "docs" / "reference" / "api.md").read_text()
    named = set(re.findall(r"^\| ([A-Z]+) \| `(/api[^`]*)` \|", page, re.MULTILINE))
    assert named == {(method, path) for method, path in real if path.startswith("/api")}


@pytest.mark.parametrize(
    "text",
    ["x", "wbt_", "wbt_a_b", "Bearer", "wbt_00000000-0000-7000-8000-000000000000_" + "A" * 43, "wbt_" + "é" * 50],
)
async def test_a_wrong_token_is_refused_and_its_text_is_not_repeated(server, text):
    response = await server.client.get("/api/status", headers={"authorization": b"Bearer " + text.encode("latin-1")})
    assert response.status_code == 401
    assert response.headers["content-type"] == "application/problem+json"
    assert "Bearer" in response.headers["www-authenticate"]
    assert text not in response.json()["detail"] or text in ("x", "Bearer")


async def test_revoked_and_expired_tokens_are_refused_at_once(server):
    expired = await server.token("viewer", expires=later(-1))
    assert (await server.call("GET", "/api/status", token=expired))[0] == 401
    _, made = await server.call("POST", "/api/tokens", {"name": "x", "role": "viewer"})
    assert (await server.call("GET", "/api/status", token=made["text"]))[0] == 200
    assert (await server.call("DELETE", f"/api/tokens/{made['token']['id']}"))[0] == 204
    assert (await server.call("GET", "/api/status", token=made["text"]))[0] == 401


async def test_a_secret_appears_only_where_it_was_made(server):
    _, made = await server.call("POST", "/api/tokens", {"name": "ci", "role": "deployer", "services": "hello"})
    secret = made["text"].rpartition("_")[2]
    for path in ("/api/tokens", "/api/events", "/api/token"):
        assert secret not in str((await server.call("GET", path))[1])

    def everything(connection):
        names = sa.inspect(connection).get_table_names()
        return str([connection.execute(sa.text(f'select * from "{name}"')).all() for name in names])

    assert secret not in await server.context.db.read(everything)


CASES = [
    ("viewer", "GET", "/api/status", None, 200),
    ("viewer", "POST", "/api/deploy", {"service": "a", "environment": "b", "ref": "main"}, 403),
    ("deployer", "POST", "/api/deploy", {"service": "a", "environment": "b", "ref": "main"}, 404),
    ("approver", "POST", "/api/rollback", {"service": "a", "environment": "b"}, 403),
    ("deployer", "POST", "/api/tokens", {"name": "n", "role": "admin"}, 403),
    ("deployer", "POST", "/api/enrolments", {}, 403),
    ("deployer", "GET", "/api/tokens", None, 403),
    ("viewer", "GET", "/api/doctor", None, 403),
    ("deployer", "PUT", "/api/grants/a/b", {"repository": "r", "branches": ["main"]}, 403),
    ("viewer", "GET", "/api/grants", None, 200),
    ("deployer", "POST", "/api/hosts/h/revoke", None, 403),
    ("deployer", "PUT", "/api/hosts/h/labels", {"labels": {}}, 403),
    ("viewer", "POST", "/api/rollouts/x/cancel", {}, 404),
    ("viewer", "PUT", f"/api/builds/a?commit={'0' * 40}", None, 403),
    ("viewer", "GET", "/api/logs/a/b", None, 404),
]


@pytest.mark.parametrize(("role", "method", "path", "body", "expected"), CASES)
async def test_roles(server, role, method, path, body, expected):
    status, _ = await server.call(method, path, body, token=await server.token(role))
    assert status == expected


async def test_a_bound_token_reaches_and_sees_only_what_it_is_bound_to(server):
    bound = await server.token("admin", services="shop-*", environments="staging")
    for path in ("/api/grants/other/staging", "/api/grants/shop-web/production"):
        status, told = await server.call("PUT", path, {"repository": "r", "branches": ["main"]}, token=bound)
        assert status == 403
        assert "bound to" in told["detail"]
    for method, path, body in (
        ("POST", "/api/tokens", {"name": "n", "role": "admin"}),
        ("POST", "/api/enrolments", {}),
        ("POST", "/api/repositories", {"name": "r", "url": "https://example.org/r"}),
    ):
        assert (await server.call(method, path, body, token=bound))[0] == 403
    assert (await server.call("GET", "/api/repositories", token=bound))[0] == 403

    def reported(connection):
        for host, service in (("h1", "shop-web"), ("h2", "other")):
            report = Report(
                service=service, environment="staging", sequence=1, state="live", at=later(0), live_sequence=1
            )
            host_store.put_report(connection, host, report)

    await server.context.db.write(reported)
    _, status = await server.call("GET", "/api/status", token=bound)
    assert [one["service"] for one in status["environments"]] == ["shop-web"]
    _, everything = await server.call("GET", "/api/status")
    assert [one["service"] for one in everything["environments"]] == ["other", "shop-web"]
    await server.call("POST", "/api/tokens", {"name": "n", "role": "viewer"})
    assert (await server.call("GET", "/api/events", token=bound))[1] == []
    assert len((await server.call("GET", "/api/events"))[1]) == 1


async def test_the_last_admin_cannot_be_revoked(server):
    _, [admin] = await server.call("GET", "/api/tokens")
    status, told = await server.call("DELETE", f"/api/tokens/{admin['id']}")
    assert (status, told["detail"]) == (403, "this is the last token of an admin.")
    _, made = await server.call("POST", "/api/tokens", {"name": "second", "role": "admin"})
    assert (await server.call("DELETE", f"/api/tokens/{admin['id']}", token=made["text"]))[0] == 204


async def test_every_change_names_who_made_it(server):
    alice = await server.token("admin", name="alice")
    await server.call("POST", "/api/tokens", {"name": "ci", "role": "deployer"}, token=alice)
    await server.call("POST", "/api/enrolments", {"labels": {"role": "web"}}, token=alice)
    _, events = await server.call("GET", "/api/events")
    assert [event["actor"] for event in events] == ["token:alice", "token:alice"]
    assert events[0]["sentence"] == "token ci: created, deployer of * in *"
    assert "role=web" in events[1]["sentence"]


async def test_wrong_tokens_slow_their_sender_down_and_nobody_who_was_right(server):
    wrong = "wbt_00000000-0000-7000-8000-000000000000_wrong"
    assert (await server.call("GET", "/api/token"))[0] == 200
    answers = [(await server.call("GET", "/api/token", token=wrong))[0] for _ in range(25)]
    assert answers == [401] * 20 + [429] * 5
    response = await server.client.get("/api/token", headers={"authorization": f"Bearer {wrong}"})
    assert 1 <= int(response.headers["retry-after"]) <= 61
    assert (await server.call("GET", "/api/token"))[0] == 200


PROBLEMS = [
    ("GET", "/nowhere", b"", 404),
    ("GET", "/api/nowhere", b"", 404),
    ("DELETE", "/api/status", b"", 405),
    ("POST", "/api/tokens", b"{", 400),
    ("POST", "/api/tokens", b"", 400),
    ("POST", "/api/tokens", b"\xff\xfe", 400),
    ("POST", "/api/tokens", b"[]", 400),
    ("POST", "/api/tokens", b'{"name": 1, "role": "viewer"}', 400),
    ("POST", "/api/tokens", b'{"name": "n", "role": "boss"}', 400),
    ("POST", "/api/tokens", b'{"name": "", "role": "viewer"}', 400),
    ("POST", "/api/tokens", b'{"role": "viewer", "days": "many", "name": "n"}', 400),
    ("POST", "/api/enrolments", b'{"uses": 0}', 400),
    ("POST", "/api/enrolments", b'{"labels": {"a b": "c"}}', 400),
    ("PUT", "/api/grants/a/b", b'{"repository": "r", "branches": []}', 400),
    ("PUT", "/api/grants/..%2f/b", b'{"repository": "r", "branches": ["main"]}', 400),
    ("PUT", "/api/grants/UPPER/b", b'{"repository": "r", "branches": ["main"]}', 400),
    ("PUT", "/api/grants/a/b", b'{"repository": "unknown", "branches": ["main"]}', 404),
    ("GET", "/api/events?limit=many", b"", 400),
    ("GET", "/api/hosts/none", b"", 404),
    ("GET", "/api/rollouts/none", b"", 404),
    ("DELETE", "/api/tokens/none", b"", 404),
    ("PUT", "/api/builds/a?commit=main", b"", 400),
    ("POST", "/api/tokens", b" " * (1024 * 1024 + 1), 413),
    ("POST", "/api/tokens", b'{"name":"\\ud800","role":"viewer"}', 400),
    ("POST", "/api/tokens", b'{"name":"a\\u0000b","role":"viewer"}', 400),
    ("PUT", "/api/grants/a/b", b'{"repository": "a\\u0000b", "branches": ["main"]}', 400),
    ("GET", "/api/rollouts/a%00b", b"", 400),
    ("GET", "/api/events?subject=%00", b"", 400),
    ("DELETE", "/api/tokens/%00", b"", 400),
]


@pytest.mark.parametrize(("method", "path", "content", "status"), PROBLEMS)
async def test_a_wrong_request_gets_a_problem_document_and_harms_nothing(server, method, path, content, status):
    headers = {"authorization": f"Bearer {server.admin}"}
    response = await server.client.request(method, path, content=content, headers=headers)
    told = response.json()
    assert response.status_code == status == told["status"], told
    assert response.headers["content-type"] == "application/problem+json"
    assert told["request"] == response.headers["x-request-id"]
    assert told["detail"].endswith((".", "?"))
    assert "Traceback" not in response.text
    assert "Error" not in told["detail"]
    assert (await server.call("GET", "/api/token"))[0] == 200


@contextmanager
def logging_to(stream):
    """Logs as the server sets them up, to a stream of ours."""
    before = logging.getLogger().handlers[:]
    with redirect_stderr(stream):
        logs.configure()
    try:
        yield
    finally:
        logging.getLogger().handlers[:] = before
        structlog.reset_defaults()
        logs.log.__dict__.pop("bind", None)  # what the first use had cached


async def test_a_fault_of_the_server_shows_no_trace_and_can_be_found_in_the_log(server, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("the inner fault")

    monkeypatch.setattr(outbox, "latest_events", broken)
    written = io.StringIO()
    with logging_to(written):
        status, told = await server.call("GET", "/api/events")
    assert status == 500
    assert "inner fault" not in str(told)
    assert "RuntimeError" not in str(told)
    assert told["request"] in written.getvalue()
    assert "the inner fault" in written.getvalue()


async def test_a_body_that_does_not_come_is_given_up(server, monkeypatch):
    from waybill.web import metrics

    monkeypatch.setattr(metrics, "CHUNK_WITHIN", 0.2)
    host, _, port = server.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST /api/tokens HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {server.admin}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
    )
    async with asyncio.timeout(10):
        answer = await reader.read(4096)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer


async def test_metrics_count_requests_work_and_hosts(server):
    await server.call("GET", "/api/grants")
    await server.call("GET", "/api/hosts/none")
    await server.context.db.write(lambda c: outbox.wake(c, "h", "k"))
    await server.context.db.write(lambda c: outbox.schedule(c, "later", "k", 3600))
    response = await server.client.get("/metrics", headers={"authorization": f"Bearer {server.admin}"})
    lines = response.text.splitlines()
    assert 'waybill_requests_total{method="GET",route="/api/grants",status="200"} 1.0' in lines
    assert 'waybill_requests_total{method="GET",route="/api/hosts/{name}",status="404"} 1.0' in lines
    assert "waybill_outbox_due 1.0" in lines
    assert "waybill_outbox_aside 0.0" in lines
    assert "waybill_hosts_connected 0.0" in lines
    await server.client.get("/some/secret/path")
    response = await server.client.get("/metrics", headers={"authorization": f"Bearer {server.admin}"})
    assert "/some/secret/path" not in response.text


async def test_a_stopping_server_is_not_ready_and_its_streams_end(server):
    async def follow():
        headers = {"authorization": f"Bearer {server.admin}"}
        async with server.client.stream("GET", "/api/events/stream", headers=headers) as response:
            return [line async for line in response.aiter_lines()]

    following = asyncio.create_task(follow())
    await asyncio.sleep(0.2)
    server.context.stopping.set()
    async with asyncio.timeout(5):
        await following
    response = await server.client.get("/readyz")
    assert (response.status_code, response.json()["detail"]) == (503, "this server is stopping.")
    assert (await server.client.get("/healthz")).status_code == 200
