"""Machines without a forge's token send their reports to the server, on both databases; the server files them."""

from __future__ import annotations

import asyncio
import json

import pytest

from support.forge import PROJECT, TOKEN
from support.races import Machine, fake_forge, half, race, seen_of
from support.server import serving
from waybill.events import outbox
from waybill.events.dispatch import Dispatcher
from waybill.races import filing, service, store
from waybill.races.actions import FileRaces


@pytest.fixture(scope="module")
def running():
    with fake_forge() as forge:
        yield forge


@pytest.fixture
def forge(running):
    running.tell("reset")
    return running


@pytest.fixture
async def served(db, tmp_path):
    async with serving(db, tmp_path / "server") as server:
        yield server


@pytest.fixture
async def dispatcher(db, tmp_path, forge):
    folder = tmp_path / "server"
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    told = {"forge": "gitlab", "url": forge.url, "project": PROJECT, "token_file": "token"}
    (folder / "races.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in told.items()))
    made = Dispatcher(db)
    races = service.Races(db, folder)
    made.handles(service.HANDLER, races.file)
    made.handles(service.SWEEP, races.sweep)

    async def file(_action, _event, _work):
        await db.write(lambda c: outbox.wake(c, service.HANDLER, service.KEY))

    made.performs(FileRaces, file)
    import waybill.automations.file_races  # noqa: F401 - registers the reactions

    task = asyncio.create_task(made.run())
    yield made
    made.stop()
    await task


async def until(check, seconds=20):
    async with asyncio.timeout(seconds):
        while not (found := await asyncio.to_thread(check)):
            await asyncio.sleep(0.02)
        return found


async def scan(served, machine, build, token, *more):
    return await served.cli(*machine.arguments(build, "--server", *more), token=token)


async def test_reports_of_three_machines_become_one_issue_and_the_token_stays_at_the_server(
    served, dispatcher, forge, tmp_path, db
):
    reporter = await served.token("reporter")
    for number in (1, 2, 3):
        machine = Machine(tmp_path / f"m{number}", f"test-0{number}", forge)
        (machine.folder / "token").unlink()
        (machine.folder / "races.toml").write_text(f'host = "test-0{number}"\n')
        machine.write(race(1, shift=number, flip=number == 2) + (race(2) if number == 3 else ""))
        status, out, err = await scan(served, machine, "b1", reporter, "--json")
        assert (status, out.count('"key_id"')) == (0, 2 if number == 3 else 1), err
        status, out, _ = await scan(served, machine, "b1", reporter)
        assert (status, out) == (0, "")
    await until(lambda: len(forge.issues) == 2)
    await until(
        lambda: {h for i in forge.issues for c in seen_of(i).values() for h in c} == {"test-01", "test-02", "test-03"}
    )
    [issue] = [issue for issue in forge.issues if "Lift1" in issue["title"]]
    assert list(seen_of(issue).values()) == [{"test-01": 1, "test-02": 1, "test-03": 1}]
    events = await db.read(lambda c: [event.body.sentence() for event in outbox.events_since(c, 0)])
    assert "test-03 reported 2 data races" in events
    assert any("issue #1 created" in sentence for sentence in events)
    assert await db.read(store.waiting) == []


async def test_what_was_sent_before_changes_nothing(served, dispatcher, forge, tmp_path, db):
    machine = Machine(tmp_path / "m", "test-01", forge)
    machine.write(race(1))
    assert (await scan(served, machine, "", None))[0] == 0
    before = await db.read(lambda c: store.infos(c, None))
    found = await db.read(lambda c: store.info(c, before[0].id))
    body = {"host": "test-01", "reports": []}
    status, told = await served.call("POST", "/api/races", body)
    assert (status, told) == (200, {"new": 0})
    for file in (machine.folder / "state").iterdir():
        file.write_bytes(file.read_bytes())
    assert (await scan(served, machine, "", None))[0] == 0
    assert await db.read(lambda c: len(store.infos(c, None))) == 1
    assert "WARNING: DATA RACE" in found.text


@pytest.mark.parametrize("how", ["before", "after"])
async def test_the_outbox_files_what_a_lost_answer_left(served, dispatcher, forge, tmp_path, monkeypatch, how):
    monkeypatch.setattr(filing, "SETTLE", 0.0)
    monkeypatch.setattr(service, "SETTLE", 0.1)
    forge.tell("fault", what="POST .*issues$", how=how)
    machine = Machine(tmp_path / "m", "test-01", forge)
    machine.write(race(1))
    assert (await scan(served, machine, "", None))[0] == 0
    await until(lambda: len([line for line in forge.tell("state")["log"] if line.startswith("POST")]) >= 1)
    await until(lambda: len(forge.issues) == 1)
    async with asyncio.timeout(20):
        while await served.context.db.read(store.waiting):
            await asyncio.sleep(0.05)
    assert len(forge.issues) == 1


async def test_a_person_decides_about_quarantine_on_the_server(served, dispatcher, forge, tmp_path):
    machine = Machine(tmp_path / "m", "test-01", forge)
    machine.write(race(1))
    await scan(served, machine, "b1", None)
    await until(lambda: forge.issues)
    machine.write("".join(half(f"yard.example/a.{name}") for name in ("C", "D", "E")))
    await scan(served, machine, "b1", None)
    async with asyncio.timeout(20):
        while len(found := await served.cli_json("races", "list", "--server")) < 3:
            await asyncio.sleep(0.1)
    attached, opened, gone = found
    assert (await served.cli("races", "attach", attached["id"], "1", "--server"))[0] == 0
    assert (await served.cli("races", "attach", opened["id"], "new", "--server"))[0] == 0
    assert (await served.cli("races", "discard", gone["id"], "--server"))[0] == 0
    await until(lambda: len(forge.issues) == 2)
    assert (await served.cli("races", "discard", gone["id"], "--server"))[0] == 6
    status, out, _ = await served.cli("races", "show", gone["id"][:16], "--server")
    assert (status, "WARNING: DATA RACE" in out) == (0, True)


async def test_a_reporter_may_report_and_nothing_else(served):
    reporter, viewer = await served.token("reporter"), await served.token("viewer")
    empty = {"host": "test-01", "reports": []}
    assert (await served.call("POST", "/api/races", empty, token=reporter))[0] == 200
    assert (await served.call("POST", "/api/races", empty, token=viewer))[0] == 403
    assert (await served.call("POST", "/api/races", empty, token=""))[0] == 401
    for path in ("/api/races", "/api/status", "/api/events", "/api/hosts"):
        assert (await served.call("GET", path, token=reporter))[0] == 403, path


@pytest.mark.parametrize(
    "report",
    [
        {"id": "a", "at": "2026-01-01T00:00:00Z", "report": {"x": 1}},
        {"id": "../a", "at": "2026-01-01T00:00:00Z", "report": {}},
        {"id": "a", "at": "yesterday", "report": {}},
        {"id": "a", "at": "2026-01-01T00:00:00Z", "report": None},
    ],
)
async def test_what_is_no_report_is_refused_and_not_kept(served, db, report):
    status, told = await served.call("POST", "/api/races", {"host": "test-01", "reports": [report]})
    assert status == 400
    assert told["detail"]
    assert await db.read(lambda c: store.infos(c, None)) == []
    status, _ = await served.call("POST", "/api/races", {"host": "../x", "reports": []})
    assert status == 400


async def test_a_machine_cannot_give_a_race_another_name(served, db):
    from waybill.races.scan import Scanner, Tape

    class Text:
        def __init__(self, text):
            self.data = text.encode()

        def read(self, size):
            taken, self.data = self.data[:size], self.data[size:]
            return taken

    [found] = Scanner().read(Tape(Text(race(1))), "x", "x")
    import msgspec

    forged = msgspec.to_builtins(found.report) | {"key_id": "v1:" + "0" * 32, "title": "@all", "key": ["a", "b"]}
    body = {"host": "m", "reports": [{"id": "a", "at": "2026-01-01T00:00:00Z", "report": forged}]}
    assert (await served.call("POST", "/api/races", body))[0] == 200
    [kept] = await db.read(store.waiting)
    assert kept.report == found.report
