"""The keeper and its services are killed at every moment, under load; users notice nothing of a dying keeper."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from demo.load import Load

from support.kept import Host, until
from waybill.agent import keeper_client

pytestmark = pytest.mark.flow
EVERY = int(os.environ.get("KEEPER_KILL_EVERY", "0"))  # 1 kills at each call the keeper makes; minutes


@pytest.fixture
async def host(tmp_path):
    made = Host(tmp_path)
    yield made
    await made.clear()


@pytest.mark.parametrize(("operation", "every"), [("start", 60), ("switch", 15), ("stop", 160)])
async def test_a_keeper_killed_at_any_step_costs_no_request(host, operation, every, capsys):
    every = EVERY or every
    release = host.release("0", drain=0.4)
    await host.do(release, "start", "probe", "switch")
    allowed = {"0"}
    load = Load(host.port, fresh=4, kept=4, allowed=allowed.__contains__, pause=0.005)
    count, kills = 1, 0
    while True:
        await host.kill_keeper()
        dying = await host.dying_keeper(operation, count)
        new = host.release(str(count), drain=0.4)
        await host.do(new, "start", "probe")
        allowed.add(str(count))
        await host.do(new, "switch")
        await host.do(release, "stop")
        allowed.discard(str(release.environment["VERSION"]))
        status = await host.status()
        assert status["current"] == new.id, status
        release = new
        if dying.returncode is None and status["pid"] == dying.pid:
            dying.kill()
            await dying.wait()
            break
        await dying.wait()
        kills += 1
        count += every
    tally = await load.stop()
    with capsys.disabled():
        print(f"\n{kills} keepers killed in {operation}: {tally}")
    assert kills >= 3
    assert not tally.lost, tally.details[:10]
    versions = (await host.status())["versions"]
    assert [(v["id"], v["restarts"]) for v in versions] == [(release.id, 0)]
    assert len(host.processes()) == 2


async def test_services_go_on_writing_while_no_keeper_reads(host):
    program = "import time\nfor n in range(100000): print('line', n, flush=True); time.sleep(0.01)"
    worker = host.release("w", port=None, health=None, command=("python3", "-S", "-c", program))
    await host.do(worker, "start", "probe", "switch")
    pid = (await host.version(worker))["pid"]
    await host.kill_keeper()
    await asyncio.sleep(0.3)
    status = await host.status()  # starts the next keeper
    assert status["versions"][0]["pid"] == pid
    numbers = []

    def caught_up() -> bool:
        numbers[:] = [int(line.rsplit(" ", 1)[1]) for line in host.log().splitlines() if " line " in line]
        return numbers[-1] > 160

    await until(caught_up)
    assert numbers == list(range(len(numbers)))  # no line is lost, none is doubled


async def test_a_service_that_died_without_a_keeper_is_started_by_the_next(host):
    release = host.release("one")
    await host.do(release, "start", "probe", "switch")
    pid = (await host.version(release))["pid"]
    await host.kill_keeper()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not host.processes())
    assert (await host.status())["current"] == release.id
    load = Load(host.port, fresh=2, kept=0, allowed={"one"}.__contains__)
    await asyncio.sleep(0.5)
    tally = await load.stop()
    assert not tally.lost and tally.versions["one"]


async def test_after_a_boot_what_served_serves_again(host):
    one, two = host.release("one"), host.release("two")
    await host.do(one, "start", "probe", "switch")
    await host.do(two, "start", "probe")
    pids = [v["pid"] for v in (await host.status())["versions"]]
    await host.kill_keeper()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not host.processes())
    state = Path(host.keeper) / "state.json"
    state.write_text(state.read_text().replace('"boot": "', '"boot": "other'))
    assert (await host.status())["current"] == one.id
    load = Load(host.port, fresh=2, kept=2, allowed={"one"}.__contains__)
    await asyncio.sleep(0.5)
    tally = await load.stop()
    assert not tally.lost and tally.versions["one"]
    await host.do(two, "start", "probe", "switch")


async def test_a_crash_loop_holds_its_socket_also_without_a_keeper(host):
    """While the current version waits for its next try, nobody else's index may become its own."""
    flag = host.folder / "crash"
    script = f"test -e {flag} && exit 1; exec python3 -S {host.release('x').command[2]}"
    one = host.release("one", command=("sh", "-c", script))
    await host.do(one, "start", "probe", "switch")
    flag.touch()
    os.kill((await host.version(one))["pid"], signal.SIGKILL)
    limit = time.monotonic() + 10
    while (await host.version(one))["restarts"] < 4:
        assert time.monotonic() < limit
        await asyncio.sleep(0.05)
    two = host.release("two")
    await host.do(two, "start", "probe")
    flag.unlink()
    await host.kill_keeper()
    load = Load(host.port, fresh=2, kept=0, allowed={"one"}.__contains__)
    await asyncio.sleep(3)
    await host.status()
    await asyncio.sleep(1)
    tally = await load.stop()
    assert tally.versions["one"] and not tally.lost["new wrong version"] and not tally.lost["new refused"], tally


async def test_a_keeper_becomes_a_newer_one_in_place(host):
    one = host.release("one")
    await host.do(one, "start", "probe", "switch")
    load = Load(host.port, fresh=4, kept=4, allowed={"one"}.__contains__)
    before = await host.status()
    for _ in range(5):
        assert (await keeper_client.upgrade(host.keeper))["ok"]
    after = await host.status()
    assert after["pid"] == before["pid"] and after["versions"][0]["pid"] == before["versions"][0]["pid"]
    refused = await keeper_client.ask(host.keeper, {"op": "upgrade", "python": "/nowhere/python"})
    assert not refused["ok"] and "/nowhere/python" in refused["reason"]
    os.kill(after["versions"][0]["pid"], signal.SIGKILL)  # it is still its parent, knows how it ended
    limit = time.monotonic() + 5
    while (await host.version(one))["exit"] != "signal 9":
        assert time.monotonic() < limit
        await asyncio.sleep(0.02)
    lost = (await load.stop()).lost
    assert not lost["new refused"] and not lost["kept refused"]


async def test_two_agents_at_once_start_one_keeper(host):
    answers = await asyncio.gather(*(keeper_client.ask(host.keeper, {"op": "status"}) for _ in range(8)))
    assert len({answer["pid"] for answer in answers}) == 1
    assert len(host.processes()) == 1


async def test_a_keeper_with_nothing_to_keep_ends(host, tmp_path):
    one = host.release("one")
    await host.do(one, "start", "probe", "switch", "stop")
    await until(lambda: not host.processes(), seconds=15)
    await host.do(one, "start", "probe", "switch")


async def test_an_idle_keeper_uses_no_time_and_little_memory(host, capsys):
    await host.do(host.release("one"), "start", "probe", "switch")
    pid = (await host.status())["pid"]
    await asyncio.sleep(0.3)

    def used() -> int:
        return sum(int(field) for field in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])

    def switches() -> int:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)

    before = used(), switches()
    await asyncio.sleep(2)
    assert (used(), switches()) == before  # it has not run at all
    memory = {line.split()[0]: int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
              if line.startswith(("VmRSS", "RssAnon"))}  # fmt: skip
    with capsys.disabled():
        print(f"\nidle keeper: {memory}")
    assert memory["RssAnon:"] < 8192 and memory["VmRSS:"] < 16384
