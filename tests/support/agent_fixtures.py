"""Fixtures of the agent's tests: a fake server, a repository, a host."""

import pytest

from support.agents import Host, InProcess, Repository, free_port
from support.fake_server import FakeServer


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
    """An enrolled host whose agent runs in the test's own loop."""
    made = InProcess(tmp_path / "host")
    await made.enroll(server)
    yield made
    await made.close()


@pytest.fixture
async def machine(tmp_path, server):
    """An enrolled host whose agent is a real process."""
    made = Host(tmp_path / "machine")
    await made.enroll(server)
    yield made
    await made.close()
    if made.log.exists():
        print(made.log.read_text())
