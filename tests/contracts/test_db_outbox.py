"""The database and the outbox, on SQLite and on PostgreSQL."""

import asyncio

import msgspec
import pytest
import sqlalchemy as sa

from waybill.deploy.events import PushReceived
from waybill.events import outbox
from waybill.events.dispatch import Dispatcher
from waybill.events.model import Again, LeaseLostError
from waybill.infra.db import metadata, notify


async def test_writes_share_a_transaction_and_a_failing_one_undoes_itself_alone(db):
    def good(name):
        return lambda c: outbox.record(c, PushReceived(repository=name, branch="main"), "t")

    def bad(c):
        outbox.record(c, PushReceived(repository="bad", branch="main"), "t")
        raise ValueError("no")

    jobs = [db.write(good(f"r{i}")) for i in range(20)] + [db.write(bad)] + [db.write(good("last"))]
    results = await asyncio.gather(*jobs, return_exceptions=True)
    assert isinstance(results[20], ValueError)
    found = await db.read(lambda c: outbox.events_since(c, 0))
    assert {event.body.repository for event in found} == {f"r{i}" for i in range(20)} | {"last"}


async def test_a_commit_rings_and_a_failure_does_not(db):
    rung = asyncio.Event()
    db.listen("bell", rung.set)
    await asyncio.sleep(0)

    def failing(c):
        notify(c, "bell")
        raise ValueError

    rung.clear()
    with pytest.raises(ValueError):
        await db.write(failing)
    assert not rung.is_set() or db.postgres  # PostgreSQL's listener rings once when it starts
    await db.write(lambda c: notify(c, "bell"))
    await asyncio.wait_for(rung.wait(), 3)


async def test_work_is_leased_once_and_waking_while_working_runs_it_again(db):
    await db.write(lambda c: outbox.wake(c, "h", "k"))
    await db.write(lambda c: outbox.wake(c, "h", "k"))
    [work] = await db.write(lambda c: outbox.lease(c, "a", 10))
    assert await db.write(lambda c: outbox.lease(c, "b", 10)) == []
    await db.write(lambda c: outbox.wake(c, "h", "k"))
    await db.write(lambda c: outbox.finish(c, work))
    [again] = await db.write(lambda c: outbox.lease(c, "b", 10))
    await db.write(lambda c: outbox.finish(c, again))
    assert await db.write(lambda c: outbox.lease(c, "b", 10)) == []
    assert await db.read(outbox.next_due) is None


async def test_a_lost_lease_cannot_be_finished_renewed_or_used(db, monkeypatch):
    monkeypatch.setattr(outbox, "LEASE", 0.6)
    await db.write(lambda c: outbox.wake(c, "h", "k"))
    [first] = await db.write(lambda c: outbox.lease(c, "a", 10))
    await asyncio.sleep(0.7)
    [second] = await db.write(lambda c: outbox.lease(c, "b", 10))
    assert second.token > first.token
    with pytest.raises(LeaseLostError):
        await db.write(lambda c: outbox.check(c, first))
    assert await db.write(lambda c: outbox.renew(c, [first, second])) == {second.id}
    await db.write(lambda c: outbox.finish(c, first))
    await db.write(lambda c: outbox.check(c, second))


async def test_failing_work_is_retried_then_set_aside_where_a_person_sees_it(db, monkeypatch):
    monkeypatch.setattr(outbox, "ATTEMPTS", 2)
    await db.write(lambda c: outbox.wake(c, "h", "k"))
    [work] = await db.write(lambda c: outbox.lease(c, "a", 1))
    assert await db.write(lambda c: outbox.fail(c, work, "first")) is False
    await db.write(lambda c: c.execute(outbox.work_table.update().values(due=0)))
    [work] = await db.write(lambda c: outbox.lease(c, "a", 1))
    assert await db.write(lambda c: outbox.fail(c, work, "second")) is True
    [shown] = await db.read(outbox.set_aside)
    assert shown.error == "second"
    assert await db.write(lambda c: outbox.lease(c, "a", 1)) == []


async def test_the_dispatcher_works_retries_and_stops_without_losing_anything(db):
    seen = []
    fail_once = {"k1"}
    dispatcher = Dispatcher(db)

    async def handler(work):
        if work.key in fail_once:
            fail_once.discard(work.key)
            raise RuntimeError("once")
        seen.append(work.key)
        return Again(0.01) if work.key == "k2" and seen.count("k2") < 3 else None

    dispatcher.handles("h", handler)
    running = asyncio.create_task(dispatcher.run())
    for key in ("k1", "k2", "k3"):
        await db.write(lambda c, key=key: outbox.wake(c, "h", key))
    async with asyncio.timeout(10):
        while sorted(seen) != ["k1", "k2", "k2", "k2", "k3"] or await db.read(outbox.next_due) is not None:
            await asyncio.sleep(0.01)
    dispatcher.stop()
    await running


async def test_rows_finished_together_go_stay_or_come_back_each_for_itself(db):
    for key in ("done", "woken", "again", "lost"):
        await db.write(lambda c, key=key: outbox.wake(c, "h", key))
    works = {work.key: work for work in await db.write(lambda c: outbox.lease(c, "a", 10))}
    await db.write(lambda c: outbox.wake(c, "h", "woken"))
    lost = msgspec.structs.replace(works["lost"], token=works["lost"].token - 1)
    done = [(works["done"], None), (works["woken"], None), (works["again"], 60.0), (lost, None)]
    await db.write(lambda c: outbox.finish_all(c, done))
    [work] = await db.write(lambda c: outbox.lease(c, "b", 10))
    assert work.key == "woken"
    assert await db.write(lambda c: outbox.renew(c, [works["lost"]])) == {works["lost"].id}
    with db.engine.connect() as connection:
        kept = set(connection.execute(sa.text("select key from work")).scalars())
    assert kept == {"woken", "again", "lost"}


async def test_what_is_done_while_the_worker_stops_is_not_done_again(db):
    begun, go, worked = asyncio.Event(), asyncio.Event(), []
    dispatcher = Dispatcher(db)

    async def handler(work):
        begun.set()
        await go.wait()
        worked.append(work.key)

    dispatcher.handles("h", handler)
    await db.write(lambda c: outbox.wake(c, "h", "k"))
    running = asyncio.create_task(dispatcher.run())
    await asyncio.wait_for(begun.wait(), 10)
    dispatcher.stop()
    await asyncio.sleep(0.05)
    go.set()
    await asyncio.wait_for(running, 15)
    assert worked == ["k"]
    assert await db.write(lambda c: outbox.lease(c, "b", 10)) == []
    assert await db.read(outbox.next_due) is None


async def test_the_migrations_make_exactly_the_tables_that_the_code_expects(db):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []
        assert connection.execute(sa.text("select count(*) from work")).scalar() == 0
