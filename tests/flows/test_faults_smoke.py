import time

import pytest

from support.system import system

pytestmark = pytest.mark.flow

async def test_it(tmp_path):
    t=time.monotonic()
    async with system(tmp_path, "a", "b") as s:
        print("up", time.monotonic()-t); t=time.monotonic()
        await s.deploy("1")
        print("dep", time.monotonic()-t); t=time.monotonic()
        users=s.users("1","2")
        await s.restart_server()
        print("restart", time.monotonic()-t); t=time.monotonic()
        await s.connected()
        print("conn", time.monotonic()-t); t=time.monotonic()
        await s.deploy("2")
        print("dep", time.monotonic()-t); t=time.monotonic()
        print(await s.nobody_lost(users))
        s.started_once("1","2")
        print(await s.events())
        print(s.logs())
    print("close", time.monotonic()-t); t=time.monotonic()
