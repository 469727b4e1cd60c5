"""The live stream, on both databases, over a real server: what watchers get, how often, and what it costs."""

import asyncio
import json
import time

import pytest
import sqlalchemy as sa

from support import pages as team
from support.pages import again, new_token, serving, visiting, waiting
from waybill.core.clock import later
from waybill.deploy.store import access as access_store
from waybill.deploy.store import hosts
from waybill.events import outbox
from waybill.web import live
from waybill.web.live import Frame

ONE, TWO = "1a" * 20, "2b" * 20


@pytest.fixture
async def what(database_url, tmp_path):
    async with waiting(database_url, tmp_path) as context:
        yield context


def seed(c):
    for name in ("web1", "web2"):
        team.enrol(c, name, {"role": "web"}, facts=team.facts())
    team.grant(c, "hello", "production", {"role": "web"})
    team.deploy(c, "hello", "production", ONE, ["web1", "web2"])


class Stream:
    """A browser's EventSource without a browser."""

    def __init__(self, answer):
        self.lines = answer.aiter_lines()
        self.seen = []

    async def next(self, seconds=10.0):
        """(event, id, data) of the next message that is no comment."""
        event = identity = ""
        data = None
        async with asyncio.timeout(seconds):
            async for line in self.lines:
                name, _, value = line.partition(":")
                value = value.strip()
                if name == "event":
                    event = value
                elif name == "id":
                    identity = value
                elif name == "data":
                    data = value
                elif not line and data is not None:
                    self.seen.append(time.monotonic())
                    return event, identity, data
        raise EOFError


async def test_a_watcher_sees_a_change_without_asking_and_comes_back_without_a_repeat(what):
    await what.db.write(seed)
    _, text = await new_token(what.db)
    async with serving(what) as address, visiting(address, text) as visit:
        async with visit.stream("GET", "/live?page=overview") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            stream = Stream(answer)
            event, first, data = await stream.next()
            assert event == "fragments" and set(json.loads(data)["fragments"]) >= {"services", "hosts", "timeline"}
            rollout = await what.db.write(lambda c: team.begin(c, "hello", "production", TWO, ["web1"]))
            _, second, data = await stream.next()
            changed = json.loads(data)["fragments"]
            assert TWO[:12] in changed["services"] and TWO[:12] in changed["timeline"]
            assert "hosts" not in changed and second != first
            await what.db.write(lambda c: team.go_on(c, rollout))
            await stream.next()
            await what.db.write(lambda c: team.say(c, "web1", rollout, "probing"))
            _, newest, data = await stream.next()
            assert "Checking health" in json.loads(data)["fragments"]["services"]
        headers = {"last-event-id": newest}
        async with visit.stream("GET", "/live?page=overview&version=old", headers=headers) as answer:
            stream = Stream(answer)
            with pytest.raises(TimeoutError):
                await stream.next(1.0)
        await what.db.write(lambda c: hosts.heard(c, ["web2"], connected=False))
        async with visit.stream("GET", "/live?page=overview", headers=headers) as answer:
            _, _, data = await Stream(answer).next()
            assert "web2 is away" in json.loads(data)["fragments"]["services"].replace("\n", " ")


async def test_a_host_that_falls_silent_is_shown_although_nothing_was_written(what, monkeypatch):
    monkeypatch.setattr(live, "TICK", 0.2)
    await what.db.write(seed)
    _, text = await new_token(what.db)
    async with (
        serving(what) as address,
        visiting(address, text) as visit,
        visit.stream("GET", "/live?page=hosts") as answer,
    ):
        stream = Stream(answer)
        await stream.next()
        with what.db.engine.connect() as connection, connection.begin():  # as time passes: no bell rings
            connection.execute(hosts.host_table.update().values(seen_epoch=1.0))
        _, _, data = await stream.next()
        assert "Away" in json.loads(data)["fragments"]["hosts"]


@pytest.mark.flow
async def test_two_hundred_watchers_cost_one_read_a_change_and_five_pushes_a_second(what):
    await what.db.write(seed)
    _, text = await new_token(what.db)
    counted = []

    def count(_connection, _cursor, statement, *_more):
        if "ORDER BY host.name" in statement:
            counted.append(statement)

    async with serving(what) as address, visiting(address, text) as visit:
        visit.timeout = None
        async with asyncio.TaskGroup() as group:
            answers = [
                await visit.send(visit.build_request("GET", "/live?page=overview"), stream=True) for _ in range(200)
            ]
            streams = [Stream(answer) for answer in answers]
            for task in [group.create_task(stream.next()) for stream in streams]:
                await task
            sa.event.listen(what.db.engine, "before_cursor_execute", count)
            began = time.monotonic()
            for number in range(300):
                await what.db.write(lambda c, n=number: outbox.record(c, _noise(n), "test"))
            lasted = time.monotonic() - began
            for stream in streams:
                data = ""
                while "noise-299" not in data:
                    _, _, data = await stream.next()
            sa.event.remove(what.db.engine, "before_cursor_execute", count)
            for answer in answers:
                await answer.aclose()
        most = (lasted + 1.5) * 5 + 2
        assert max(len(stream.seen) for stream in streams) <= most
        assert 1 <= len(counted) <= most


async def test_a_stream_ends_with_its_token_and_with_the_server(what, monkeypatch):
    monkeypatch.setattr(live, "TICK", 0.2)
    await what.db.write(seed)
    token, text = await new_token(what.db)
    _, other = await new_token(what.db, name="bob", expires=later(1))
    async with serving(what) as address, visiting(address, text) as visit, visiting(address, other) as guest:
        async with visit.stream("GET", "/live?page=overview") as one, guest.stream("GET", "/live?page=overview") as two:
            first, second = Stream(one), Stream(two)
            await first.next()
            await second.next()
            assert (await second.next())[0] == "bye"
            await what.db.write(lambda c: access_store.revoke_token(c, token.id))
            assert (await first.next())[0] == "bye"
        assert (await visit.get("/live?page=overview")).status_code == 401
    _, text = await new_token(what.db, name="eve")
    what = again(what)
    async with (
        serving(what) as address,
        visiting(address, text) as visit,
        visit.stream("GET", "/live?page=overview") as answer,
    ):
        stream = Stream(answer)
        await stream.next()
        what.stopping.set()
        with pytest.raises(EOFError):
            await stream.next(3)


async def test_odd_questions_to_the_stream_are_refused(what):
    _, text = await new_token(what.db)
    async with serving(what) as address, visiting(address, text) as visit:
        for query in ("page=passwords", "page=", "", f"page=rollout&about={'x' * 300}"):
            assert (await visit.get(f"/live?{query}")).status_code in (400, 404)
        for query in ("page=rollout&about=%00%27", "page=environment&about=x", "page=hosts&about=nonsense"):
            async with visit.stream("GET", f"/live?{query}") as answer:
                assert answer.status_code in (200, 400)


def test_time_passing_alone_changes_no_version():
    early = Frame({"a": '<time>1</time> <span class="age">just now</span>'})
    late = Frame({"a": '<time>1</time> <span class="age">3 h ago</span>'})
    other = Frame({"a": '<time>2</time> <span class="age">just now</span>'})
    assert early.version == late.version != other.version


def _noise(number):
    from waybill.deploy.events import Changed

    return Changed(what="noise", name=f"noise-{number}", change="made")
