"""Webhooks over real sockets, on both databases: what is taken, what is refused, and what is left in the database."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from contextlib import suppress

import pytest
import sqlalchemy as sa

from support.hooks import NEW, OLD, SECRET, Answer, push, raw, read_answer, serving, signed
from waybill.core.clock import stamp
from waybill.core.errors import InvalidInputError, NotFoundError
from waybill.core.ids import new_id
from waybill.deploy.events import PushReceived
from waybill.deploy.model import Repository
from waybill.deploy.store import access, repositories
from waybill.events import outbox
from waybill.infra.keys import Keys
from waybill.web import hooks as module
from waybill.web import patience
from waybill.web.hooks import Hooks
from waybill.web.metrics import Metrics

HANDLER = "test.reaction"


@pytest.fixture
async def hooks(db, tmp_path, monkeypatch, metrics):
    monkeypatch.setitem(outbox.handlers_of, "PushReceived", [HANDLER])
    await db.write(lambda c: repositories.put_repository(c, Repository(name="team/app", url="/srv/app.git")))
    return Hooks(db, Keys(tmp_path), metrics)


@pytest.fixture
async def served(hooks):
    async with serving(hooks) as served:
        yield served


@pytest.fixture
async def hook(hooks):
    identity, _ = await hooks.add("github", "team/app", "test", SECRET)
    return identity


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def counted(metrics):
    return lambda reason: metrics.refusals.get(reason, 0)


async def kept(db):
    """(events, rows of work, deliveries) in the database."""

    def count(connection):
        tables = (outbox.event_table, outbox.work_table, access.delivery_table)
        return tuple(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() for table in tables)

    return await db.read(count)


def is_problem(answer: Answer, status: int) -> bool:
    return (
        answer.status == status
        and answer.headers["content-type"] == "application/problem+json"
        and answer.told["status"] == status
        and bool(answer.told["title"])
        and bool(answer.told["detail"])
    )


async def test_a_push_is_durable_when_it_is_answered(served, hook, db):
    answer = await served.post(hook, push(), signed(push()))
    assert (answer.status, answer.told) == (202, {"delivery": "d1"})
    [event] = await db.read(lambda c: outbox.events_since(c, 0))
    assert event.body == PushReceived(repository="team/app", branch="main", claimed=NEW, pusher="ann")
    assert event.actor == f"hook:{hook}"
    [work] = await db.write(lambda c: outbox.lease(c, "me", 5))
    assert (work.handler, work.key) == (HANDLER, event.id)


async def test_a_thousand_duplicates_do_nothing(served, hook, db):
    body = push()
    request = raw(f"/hooks/{hook}", body, signed(body))
    statuses = []

    async def sender():
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        for _ in range(100):
            writer.write(request)
            statuses.append((await read_answer(reader)).status)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(sender() for _ in range(10)))
    assert sorted(statuses) == [200] * 999 + [202]
    assert await kept(db) == (1, 1, 1)


async def test_the_same_delivery_id_at_another_hook_is_another_delivery(served, hooks, hook, db):
    other, _ = await hooks.add("github", "team/app", "test", SECRET)
    assert [(await served.post(h, push(), signed(push()))).status for h in (hook, other)] == [202, 202]
    assert (await kept(db))[2] == 2


async def test_a_push_of_several_branches_is_one_delivery(served, hooks, db, counted):
    hook, secret = await hooks.add("generic", "team/app", "test")
    updates = [{"ref": f"refs/heads/b{n}", "before": OLD, "after": NEW} for n in range(3)]
    body = json.dumps({"v": 1, "repository": "team/app", "pusher": "ann", "updates": updates}).encode()

    def own(at):
        mac = hmac.new(secret.encode(), f"d1.{at}.".encode() + body, hashlib.sha256).hexdigest()
        headers = {"waybill-delivery": "d1", "waybill-timestamp": str(at), "waybill-signature": f"v1={mac}"}
        return {"content-type": "application/json", **headers}

    assert (await served.post(hook, body, own(int(time.time())))).status == 202
    events = await db.read(lambda c: outbox.events_since(c, 0))
    assert [event.body.branch for event in events] == ["b0", "b1", "b2"]
    assert (await kept(db))[1:] == (3, 1)
    before = counted("stale")
    assert is_problem(await served.post(hook, body, own(int(time.time()) - 301)), 401)
    assert is_problem(await served.post(hook, body, own(int(time.time()) + 320)), 401)
    assert counted("stale") == before + 2


async def test_what_nobody_reacts_to_is_answered_and_not_kept(served, hook, db):
    for body, event in ((b'{"zen":"x"}', "ping"), (push().replace(b"refs/heads/", b"refs/tags/"), "push")):
        answer = await served.post(hook, body, signed(body, event=event))
        assert answer.status == 200
        assert answer.told["ignored"]
    assert await kept(db) == (0, 0, 0)


REFUSED = [
    ("unsigned", 401, push(), {"content-type": "application/json", "x-github-event": "push"}),
    ("wrong-signature", 401, push(), signed(push(), secret="another secret")),
    ("wrong-signature", 401, push() + b" ", signed(push())),
    ("malformed", 400, b"{", signed(b"{")),
    ("malformed", 400, b"", signed(b"")),
    ("malformed", 400, b'{"ref":5}', signed(b'{"ref":5}')),
    ("media-type", 415, push(), {**signed(push()), "content-type": "application/x-www-form-urlencoded"}),
    ("media-type", 415, push(), {**signed(push()), "content-encoding": "gzip"}),
]


@pytest.mark.parametrize(("outcome", "status", "body", "headers"), REFUSED)
async def test_what_is_refused_says_why_is_counted_and_leaves_nothing(
    served, hook, db, outcome, status, body, headers, counted
):
    before = counted(outcome)
    answer = await served.post(hook, body, headers)
    assert is_problem(answer, status), answer.body
    assert SECRET.encode() not in answer.body
    assert counted(outcome) == before + 1
    assert await kept(db) == (0, 0, 0)


async def test_a_refused_delivery_may_come_again_and_be_taken(served, hook, db):
    assert (await served.post(hook, push(), signed(push(), secret="not yet entered"))).status == 401
    assert (await served.post(hook, push(), signed(push()))).status == 202


@pytest.mark.parametrize("path", ["nothing", "%00", "..%2f..", "x" * 4000, "%ff", "0" * 36])
async def test_an_unknown_hook_is_404(served, path, counted):
    before = counted("unknown-hook")
    answer = await served.exchange(raw(f"/hooks/{path}", push(), signed(push())))
    assert is_problem(answer, 404)
    assert counted("unknown-hook") in (before, before + 1)


async def test_a_removed_hook_is_unknown_at_once(served, hooks, hook, tmp_path):
    assert (tmp_path / "keys" / f"hook-{hook}").stat().st_mode & 0o777 == 0o600
    await hooks.remove(hook)
    assert (await served.post(hook, push(), signed(push()))).status == 404
    assert not (tmp_path / "keys" / f"hook-{hook}").exists()


async def test_a_hook_that_another_server_removed_is_unknown_here_too(served, hook, db):
    assert (await served.post(hook, push(), signed(push()))).status == 202
    await db.write(lambda c: access.remove_hook(c, hook))
    assert (await served.post(hook, push("b"), signed(push("b"), "d2"))).status == 404
    assert (await served.post(hook, push("b"), signed(push("b"), "d3"))).status == 404
    assert (await served.post(hook, push("b"), signed(push("b"), "d3", secret="wrong"))).status == 404
    assert await kept(db) == (1, 1, 1)


async def test_an_id_with_something_after_it_is_not_that_hook(served, hook):
    assert (await served.exchange(raw(f"/hooks/{hook}x", push(), signed(push())))).status == 404


async def test_other_methods_and_paths_are_problem_documents(served, hook):
    assert is_problem(await served.exchange(raw(f"/hooks/{hook}", b"", {}, "GET")), 405)
    assert is_problem(await served.exchange(raw("/nothing", b"", {}, "POST")), 404)


async def test_an_unknown_hook_takes_as_long_as_a_wrong_signature(served, hook):
    body = push(padding="x" * 200_000)
    headers = signed(body, secret="wrong")
    known, unknown = (raw(f"/hooks/{name}", body, headers) for name in (hook, new_id()))
    took = {known: [], unknown: []}
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    for turn in range(60):
        for request in (known, unknown) if turn % 2 else (unknown, known):
            start = time.perf_counter()
            writer.write(request)
            await read_answer(reader)
            took[request].append(time.perf_counter() - start)
    writer.close()
    await writer.wait_closed()
    one, other = min(took[known]), min(took[unknown])  # the work itself; a busy machine only ever adds to it
    # A SHA-256 of this body alone takes about a quarter of the whole; leaving it out would show.
    assert 0.75 < one / other < 1.33


class TestLimits:
    async def test_an_announced_length_over_the_limit_is_refused_without_the_body(self, served, hook, counted):
        before = counted("too-large")
        headers = {**signed(b""), "content-length": str(module.BODY_LIMIT + 1), "expect": "100-continue"}
        assert is_problem(await served.exchange(raw(f"/hooks/{hook}", b"", headers)), 413)
        assert counted("too-large") == before + 1

    async def test_a_body_over_the_limit_is_refused_and_its_sender_reads_why(self, served, hook, monkeypatch):
        monkeypatch.setattr(module, "BODY_LIMIT", 100_000)
        body = b"x" * 3_000_000
        assert is_problem(await served.post(hook, body, signed(b"")), 413)

    async def test_chunks_without_a_length_are_counted(self, served, hook, db, monkeypatch):
        monkeypatch.setattr(module, "BODY_LIMIT", 100_000)
        headers = {**signed(b""), "transfer-encoding": "chunked"}
        chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
        answer = await served.exchange(raw(f"/hooks/{hook}", chunk * 11 + b"0\r\n\r\n", headers))
        assert is_problem(answer, 413)
        small = {**signed(push()), "transfer-encoding": "chunked"}
        chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(push()), push())
        assert (await served.exchange(raw(f"/hooks/{hook}", chunked, small))).status == 202

    async def test_a_body_of_exactly_the_limit_is_taken(self, served, hook):
        body = push(padding="")
        body = body[:-2] + b"x" * (module.BODY_LIMIT - len(body)) + body[-2:]
        assert len(body) == module.BODY_LIMIT
        assert (await served.exchange(raw(f"/hooks/{hook}", body, signed(body)), 60)).status == 202

    async def test_too_many_large_ones_at_once_are_told_to_come_again(self, served, hook, monkeypatch):
        monkeypatch.setattr(module, "MEMORY", 50_000)
        assert is_problem(await served.post(hook, b"x" * 60_000, signed(b"")), 503)
        assert (await served.post(hook, push(), signed(push()))).status == 202

    async def test_a_body_that_dribbles_is_cut_off_and_others_are_served(self, served, hook, monkeypatch, counted):
        monkeypatch.setattr(module, "BODY_TIME", 0.3)
        before = counted("too-slow")
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(raw(f"/hooks/{hook}", push()[:20], {**signed(push()), "content-length": "400"}))
        assert (await served.post(hook, push(), signed(push()))).status == 202
        assert is_problem(await read_answer(reader, 5), 408)
        assert await asyncio.wait_for(reader.read(), 5) == b"", "the connection is closed"
        writer.close()
        await writer.wait_closed()
        assert counted("too-slow") == before + 1

    @pytest.mark.parametrize("begin", [b"", b"POST /hooks/x", b"POST /hooks/x HTTP/1.1\r\nhost: x\r\nx-a: "])
    async def test_a_head_that_does_not_end_is_cut_off(self, served, hook, monkeypatch, begin):
        monkeypatch.setattr(patience, "HEAD_TIME", 0.3)
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(begin)

        async def dribble():
            with suppress(ConnectionError):
                while begin:
                    writer.write(b"a")
                    await writer.drain()
                    await asyncio.sleep(0.02)

        dribbling = asyncio.create_task(dribble())
        assert is_problem(await read_answer(reader, 5), 408)
        dribbling.cancel()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def test_a_second_head_on_the_same_connection_has_no_longer_time(self, served, hook, monkeypatch):
        monkeypatch.setattr(patience, "HEAD_TIME", 0.3)
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(raw(f"/hooks/{hook}", push(), signed(push())))
        assert (await read_answer(reader)).status == 202
        writer.write(b"\r\n")  # a byte between requests must not stop the clock
        assert is_problem(await read_answer(reader, 5), 408)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def test_a_head_without_end_is_refused(self, served):
        head = b"POST /hooks/x HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 2_000_000
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        with suppress(ConnectionError):
            writer.write(head)
            await writer.drain()
        with suppress(ConnectionError):  # what we still wrote may have thrown the refusal away
            assert is_problem(await read_answer(reader), 431)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def test_a_sender_that_goes_away_leaves_nothing_behind(self, served, hook, db, counted):
        before = counted("disconnected")
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(raw(f"/hooks/{hook}", push()[:20], {**signed(push()), "content-length": "400"}))
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(5):
            while counted("disconnected") == before:
                await asyncio.sleep(0.01)
        assert await kept(db) == (0, 0, 0)
        assert served.hooks._held == 0


HOSTILE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /hooks/x HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    b"POST /hooks/x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    b"POST /hooks/x HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999999999\r\n\r\n",
    b"POST /hooks/x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /hooks/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
    b"POST /hooks/\xff\xfe HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
    b"POST  HTTP/1.1\r\n\r\n",
    b"POST /hooks/x HTTP/1.1\r\nhost: x\r\nx\x00y: z\r\n\r\n",
    b"POST /hooks/x HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\r\n",
    b"POST /hooks/x?" + b"a" * 60_000 + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
]


@pytest.mark.parametrize("request_bytes", HOSTILE, ids=lambda data: repr(data[:60]))
async def test_hostile_bytes_are_refused_and_the_next_request_is_served(served, hook, db, request_bytes):
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    with suppress(ConnectionError):
        writer.write(request_bytes)
        writer.write_eof()
        async with asyncio.timeout(5):
            answer = await reader.read(12)
        assert answer[9:10] in (b"", b"4"), answer
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    assert (await served.post(hook, push(), signed(push()))).status == 202


async def test_repeated_signature_headers_are_refused(served, hook):
    request = raw(f"/hooks/{hook}", push(), signed(push()))
    doubled = request.replace(b"x-github-event", b"x-hub-signature-256: sha256=00\r\nx-github-event")
    assert is_problem(await served.exchange(doubled), 400)


class TestAddresses:
    async def test_a_fresh_secret_is_made_and_kept_out_of_the_database(self, hooks, db):
        identity, secret = await hooks.add("gitlab", "team/app", "test")
        assert len(secret) == 64
        rows = await db.read(access.hooks)
        assert [row["id"] for row in rows] == [identity]
        assert secret not in str(rows)

    @pytest.mark.parametrize(
        ("forge", "repository", "secret", "error"),
        [
            ("bitkeeper", "team/app", "", NotFoundError),
            ("github", "team/other", "", NotFoundError),
            ("github", "team/app", "short", InvalidInputError),
            ("gitlab", "team/app", "whsec_not-base64-at-all", InvalidInputError),
        ],
    )
    async def test_what_cannot_work_is_refused_and_leaves_no_key(
        self, hooks, tmp_path, forge, repository, secret, error
    ):
        with pytest.raises(error):
            await hooks.add(forge, repository, "test", secret)
        assert list((tmp_path / "keys").iterdir()) == []

    async def test_old_delivery_ids_are_forgotten_and_young_ones_are_not(self, hooks, hook, db):
        await db.write(lambda c: access.first_delivery(c, hook, "young"))
        row = {"hook": hook, "delivery": "old", "at": stamp(module.clock.now() - module.KEPT * 1.1)}
        await db.write(lambda c: c.execute(access.delivery_table.insert().values(**row)))
        await hooks.forget()
        assert not await db.write(lambda c: access.first_delivery(c, hook, "young"))
        assert await db.write(lambda c: access.first_delivery(c, hook, "old"))
