"""A real agent, a real keeper, real git and real TLS, against the stateful fake server."""

import pytest

from support.agents import Host, Repository, asked, eventually, free_port, manifest
from support.fake_server import FakeServer

pytestmark = pytest.mark.flow


@pytest.fixture
async def server(tmp_path):
    fake = await FakeServer(tmp_path / "server").start()
    yield fake
    await fake.close()


@pytest.fixture
def repository(tmp_path, server):
    made = Repository(tmp_path / "repo", free_port(), tmp_path / "starts")
    server.repositories["team/hello"] = made.path
    return made


@pytest.fixture
async def host(tmp_path, server):
    made = Host(tmp_path / "host")
    await made.enroll(server)
    yield made
    await made.close()
    if made.log.exists():
        print(made.log.read_text())


async def test_a_commit_goes_live_and_the_next_one_takes_over(server, repository, host):
    first = repository.version("one")
    await host.start()
    await server.desire(manifest(first, 1))
    live = await server.reported("live", 1)
    assert live.live_commit == first and live.took > 0
    assert (await asked(repository.port)) == f"one - {first}"
    second = repository.version("two")
    await server.desire(manifest(second, 2))
    await server.reported("live", 2)
    assert (await asked(repository.port)) == f"two - {second}"
    folder = host.home.service("hello", "production")
    assert (folder.current / "REVISION").read_text().strip() == second
    await eventually(lambda: not folder.live().retiring)
