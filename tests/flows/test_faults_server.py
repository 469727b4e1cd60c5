"""The server dies, at any moment: no push is lost, nothing is started twice, and users notice nothing."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from pathlib import Path

import pytest

from support.system import system

pytestmark = pytest.mark.flow

STEPS = {
    "announced": "SELECT 1 FROM event WHERE kind = 'PushReceived' AND body LIKE '%{commit}%'",
    "fetched": "SELECT 1 FROM head WHERE \"commit\" = '{commit}'",
    "planned": "SELECT 1 FROM rollout WHERE \"commit\" = '{commit}'",
    "told": "SELECT 1 FROM rollout r JOIN rollout_host h ON h.rollout = r.id "
    "WHERE r.\"commit\" = '{commit}' AND h.state <> 'untold'",
    "on its way": "SELECT 1 FROM rollout r JOIN rollout_host h ON h.rollout = r.id "
    "WHERE r.\"commit\" = '{commit}' AND h.state NOT IN ('untold', 'waiting')",
    "live on one": "SELECT 1 FROM rollout r JOIN rollout_host h ON h.rollout = r.id "
    "WHERE r.\"commit\" = '{commit}' AND h.state = 'live'",
    "done": "SELECT 1 FROM rollout WHERE \"commit\" = '{commit}' AND state = 'done'",
}


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> str:
    """The address of an empty database; empty for SQLite in the data folder."""
    return "" if request.param == "sqlite" else fresh_postgres(request)


def fresh_postgres(request: pytest.FixtureRequest) -> str:
    server = request.getfixturevalue("postgres_server")
    name = f"f{random.SystemRandom().getrandbits(48):x}"
    server.psql(f"CREATE DATABASE {name};")
    return str(server.get_uri(name))


async def test_killed_at_every_step_of_a_rollout(tmp_path: Path, database: str) -> None:
    async with system(tmp_path, "web1", "web2", database=database) as s:
        await s.deploy("0")
        users = s.users()
        for number, (step, query) in enumerate(STEPS.items(), 1):
            commit = s.commit(str(number))
            pushing = asyncio.create_task(s.push())
            seen = query.format(commit=commit)
            await s.until(lambda sql=seen: s.query(sql), f"{step} was never reached")
            await s.restart_server()
            await pushing
            await s.serves(str(number))
            await s.ended(commit)
            assert len(await s.rollouts(commit)) == 1, step
        tally = await s.nobody_lost(users)
        assert set(tally.versions) <= {str(number) for number in range(len(STEPS) + 1)}
        s.started_once(*(str(number) for number in range(len(STEPS) + 1)))


@pytest.mark.parametrize(("kind", "kills"), [("sqlite", 17), ("postgres", 8)])
async def test_killed_at_random_again_and_again(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, kills: int
) -> None:
    chance = random.Random(20260101)
    async with system(tmp_path, "web1", "web2", database="" if kind == "sqlite" else fresh_postgres(request)) as s:
        await s.deploy("0")
        users = s.users()
        commits = []
        for number in range(1, kills + 1):
            commits.append(s.commit(str(number)))
            pushing = asyncio.create_task(s.push())
            await asyncio.sleep(chance.uniform(0.0, 1.2))
            await s.server.kill()
            await s.start_server()
            await pushing
        await s.serves(str(kills))
        await s.ended(commits[-1])
        for commit in commits:
            states = [one["state"] for one in await s.rollouts(commit)]
            assert len(states) <= 1, "a push became two rollouts"
            assert states in ([], ["done"], ["superseded"]), states
        starts = s.starts()
        assert max(starts.values()) == 1, f"something was started twice: {starts}"
        assert all(starts[name, str(kills)] == 1 for name in s.agents)
        await s.nobody_lost(users)
        assert not s.query("SELECT * FROM work WHERE handler <> 'sweep' AND aside"), "work was left aside"


async def test_stops_within_seconds_dropping_no_request_and_no_work(tmp_path: Path) -> None:
    async with system(tmp_path, "web1") as s:
        await s.deploy("0")
        users = s.users()
        asked = asyncio.Event()
        answers: list[int] = []

        async def keep_asking() -> None:
            """A client of the API on fresh connections: what was accepted is answered."""
            while not asked.is_set():
                try:
                    reader, writer = await asyncio.open_connection(s.url[7:].split(":")[0], 8470)
                except ConnectionRefusedError:
                    return  # it no longer listens: this request was never taken
                try:
                    writer.write(
                        f"GET /api/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {s.token}\r\n\r\n".encode()
                    )
                    answers.append(int((await reader.read()).split(b" ", 2)[1]))
                except (ConnectionResetError, IndexError):
                    answers.append(0)
                finally:
                    writer.close()
                await asyncio.sleep(0.01)

        clients = [asyncio.create_task(keep_asking()) for _ in range(8)]
        commit = s.commit("1")
        await s.push()
        await s.until(lambda: s.query(STEPS["told"].format(commit=commit)), "the hosts were not told")
        began = time.monotonic()
        assert await s.server.end(signal.SIGTERM) == 0
        took = time.monotonic() - began
        await asyncio.gather(*clients)
        assert took < 13, "stopping takes at most the time that requests have, and a little"
        assert len(answers) > 8 and set(answers) == {200}, "a request that was accepted was not answered"
        await s.start_server()
        await s.serves("1")
        await s.ended(commit)
        s.started_once("0", "1")
        await s.nobody_lost(users)
