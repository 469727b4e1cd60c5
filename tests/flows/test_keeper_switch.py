"""Versions change under load, and no user notices."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from demo.load import Load

from support.kept import Host, until
from waybill.drivers.model import Health
from waybill.drivers.process import Options

pytestmark = pytest.mark.flow


@pytest.fixture
async def host(tmp_path):
    made = Host(tmp_path)
    yield made
    await made.clear()


async def test_thirty_switches_under_load_lose_nothing(host, capsys):
    allowed: set[str] = {"0"}
    release = host.release("0")
    await host.do(release, "start", "probe", "switch")
    load = Load(host.port, fresh=6, kept=6, allowed=allowed.__contains__)
    took, stops = [], []
    for number in range(1, 31):
        new = host.release(str(number))
        await host.do(new, "start", "probe")
        allowed.add(str(number))
        began = time.monotonic()
        await host.do(new, "switch")
        took.append((time.monotonic() - began) * 1000)
        stops.append(asyncio.create_task(host.do(release, "stop")))
        release = new
    await asyncio.gather(*stops)
    tally = await load.stop()
    with capsys.disabled():
        print(f"\n30 switches: median {sorted(took)[15]:.1f} ms, slowest {max(took):.1f} ms; {tally}")
    assert not tally.lost, tally.details[:10]
    assert tally.sent["new"] > 1000 and tally.sent["kept"] > 1000
    assert len(tally.versions) == 31
    assert [v["id"] for v in (await host.status())["versions"]] == [release.id]


async def test_a_broken_version_never_answers_a_user(host):
    good = host.release("good")
    await host.do(good, "start", "probe", "switch")
    load = Load(host.port, fresh=4, kept=4, allowed={"good"}.__contains__)
    for name, variables, reason in (
        ("broken", {"BROKEN": "1"}, r"answers HTTP/1.1 500 Internal Server Error"),
        ("crash", {"CRASH": "1"}, r"it ended 3 times, last with exit status 1"),
        ("slow", {"SLOW": "9"}, r"no answer within 1.0 s"),
    ):
        bad = host.release(name, variables=variables, health=Health(path="/health", within=1.0))
        await host.do(bad, "start")
        result = await host.step("probe", bad)
        assert not result.ok and re.search(reason, result.reason), result
        await host.do(bad, "stop")
    tally = await load.stop()
    assert not tally.lost, tally.details[:10]
    assert set(tally.versions) == {"good"}


async def test_the_failing_answer_and_the_last_log_lines_are_shown(host):
    bad = host.release("bad", variables={"BROKEN": "1"}, health=Health(path="/health", within=0.5))
    await host.do(bad, "start")
    assert '"version": "bad"' in (await host.step("probe", bad)).output
    crash = host.release("crash", variables={"CRASH": "1"})
    await host.do(crash, "start")
    assert "asked to crash" in (await host.step("probe", crash)).output


async def test_before_the_first_switch_nobody_reaches_the_first_version(host):
    first = host.release("first")
    await host.do(first, "start", "probe")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await asyncio.open_connection("127.0.0.1", host.port)
    await host.do(first, "switch")
    async with asyncio.timeout(5):
        _, writer = await asyncio.open_connection("127.0.0.1", host.port)
    writer.close()


async def test_connections_queue_while_a_killed_service_restarts(host):
    release = host.release("one")
    await host.do(release, "start", "probe", "switch")
    load = Load(host.port, fresh=4, kept=0)
    for _ in range(3):
        pid = (await host.version(release))["pid"]
        os.kill(pid, signal.SIGKILL)
        limit = time.monotonic() + 10
        while (version := await host.version(release))["pid"] == pid or version["state"] != "running":
            assert time.monotonic() < limit
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
    tally = await load.stop()
    # what the killed process had in its hands is lost with it; nobody is refused, nobody waits for long
    assert sum(tally.lost.values()) <= 3 * 4 and not tally.lost["new refused"], tally
    assert (await host.version(release))["restarts"] == 3


async def test_a_server_that_binds_the_port_itself_is_told_what_is_needed(host):
    program = "import socket,sys,os; s=socket.socket(); s.bind(('',int(os.environ['PORT']))); s.listen()"
    stubborn = host.release("stubborn", command=(sys.executable, "-S", "-c", program))
    await host.do(stubborn, "start")
    began = time.monotonic()
    result = await host.step("probe", stubborn)
    assert not result.ok and "LISTEN_FDS" in result.reason and "uvicorn --fd 3" in result.reason
    assert time.monotonic() - began < 3
    await host.do(stubborn, "stop")


async def test_a_server_that_ignores_the_socket_is_told_what_is_needed(host):
    deaf = host.release("deaf", command=("sleep", "60"), health=Health(path="/", within=0.6, timeout=0.3))
    await host.do(deaf, "start")
    result = await host.step("probe", deaf)
    assert not result.ok and "accepted no connection" in result.reason and "LISTEN_FDS" in result.reason


async def test_a_server_that_joins_the_group_by_itself_gets_no_user(host):
    program = (
        "import socket,os,time; s=socket.socket(); s.setsockopt(1,15,1); s.bind(('',int(os.environ['PORT']))); "
        "s.listen(); time.sleep(60)"
    )
    good = host.release("good")
    await host.do(good, "start", "probe", "switch")
    load = Load(host.port, fresh=4, kept=0, allowed={"good"}.__contains__)
    sly = host.release("sly", command=(sys.executable, "-S", "-c", program), health=Health(path="/", within=1.0))
    await host.do(sly, "start")
    assert not (await host.step("probe", sly)).ok
    result = await host.step("switch", sly)
    assert not result.ok and "something else listens" in result.reason
    await host.do(sly, "stop")
    tally = await load.stop()
    assert not tally.lost, tally.details


async def test_a_taken_port_is_refused_with_the_one_who_has_it(host):
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", host.port))
        other.listen()
        result = await host.step("start", host.release("late"))
    assert not result.ok and f"port {host.port}" in result.reason and f"process {os.getpid()}" in result.reason


async def test_a_worker_without_a_port(host):
    worker = host.release("w1", port=None, health=None, command=("sleep", "100"))
    await host.do(worker, "start", "probe", "switch")
    new = host.release("w2", port=None, health=None, command=("sleep", "100"))
    await host.do(new, "start", "probe", "switch")
    await host.do(worker, "stop")
    assert (await host.status())["current"] == new.id
    bad = host.release("w3", port=None, health=None, command=("sh", "-c", "echo no luck; exit 3"))
    await host.do(bad, "start")
    result = await host.step("probe", bad)
    assert not result.ok and "exit status 3" in result.reason and "no luck" in result.output


async def test_every_step_twice_changes_nothing(host):
    one, two = host.release("one"), host.release("two")
    await host.do(one, "start", "start", "probe", "probe", "switch", "switch")
    await host.do(two, "start", "probe", "switch", "start", "switch")
    await host.do(one, "stop", "stop")
    status = await host.status()
    assert status["current"] == two.id and len(status["versions"]) == 1 and status["versions"][0]["restarts"] == 0


async def test_back_to_a_release_that_still_drains(host):
    one = host.release("one", drain=3.0)
    await host.do(one, "start", "probe", "switch")
    two = host.release("two")
    await host.do(two, "start", "probe", "switch")
    stopping = asyncio.create_task(host.do(one, "stop"))
    await asyncio.sleep(0.1)
    allowed = {"one", "two"}
    load = Load(host.port, fresh=4, kept=2, allowed=allowed.__contains__)
    await host.do(one, "start", "probe", "switch")
    await host.do(two, "stop")
    await stopping
    allowed.discard("two")
    await asyncio.sleep(0.1)
    tally = await load.stop()
    assert not tally.lost and (await host.status())["current"] == one.id


async def test_a_new_port_while_the_old_one_drains(host):
    one = host.release("one")
    await host.do(one, "start", "probe", "switch")
    two = host.release("two", port=Host(host.folder).port)
    await host.do(two, "start", "probe", "switch")
    await host.do(one, "stop")
    reader, writer = await asyncio.open_connection("127.0.0.1", two.port)
    writer.write(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert b'"two"' in await reader.read()
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", host.port)


async def test_stop_ends_the_whole_group_in_time(host):
    program = "trap '' TERM; sleep 100 & sleep 100 & wait; sleep 100"
    stubborn = host.release("s", port=None, health=None, command=("sh", "-c", program), drain=0.5)
    await host.do(stubborn, "start", "probe", "switch")
    assert len(host.processes()) == 4  # the keeper, the shell, two sleeps
    began = time.monotonic()
    await host.do(stubborn, "stop")
    assert 0.4 < time.monotonic() - began < 3
    await until(lambda: len(host.processes()) == 1)


async def test_ipv6_and_ipv4_on_one_socket(host):
    import socket

    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    options = Options(bind="::")
    one, two = host.release("one", options=options), host.release("two", options=options)
    await host.do(one, "start", "probe", "switch")
    allowed = {"one"}
    loads = [
        Load(host.port, host=address, fresh=2, kept=2, allowed=allowed.__contains__) for address in ("127.0.0.1", "::1")
    ]
    await host.do(two, "start", "probe")
    allowed.add("two")
    await host.do(two, "switch")
    await host.do(one, "stop")
    for load in loads:
        tally = await load.stop()
        assert not tally.lost and tally.versions["two"], tally.details


async def test_secrets_are_read_at_each_start_and_shown_nowhere(host):
    secrets = host.folder / "variables"
    secrets.write_text('PASSWORD="hunter2"\n')
    program = 'sleep 0.2; echo "${#PASSWORD} characters, $1"; while sleep 0.1; do :; done'
    worker = host.release(
        "w", port=None, health=None, command=("sh", "-c", program, "-", "$HOME"), secrets=str(secrets)
    )
    await host.do(worker, "start", "probe", "switch")
    assert "7 characters, $HOME" in host.log()  # no shell has read the arguments
    secrets.write_text("PASSWORD='a longer secret'\n")
    os.kill((await host.version(worker))["pid"], signal.SIGKILL)
    await until(lambda: "15 characters" in host.log())
    texts = host.log() + (host.folder / "keeper/state.json").read_text() + str(await host.status())
    for pid in host.processes():
        with contextlib.suppress(OSError):  # the loop's own sleeps come and go
            texts += Path(f"/proc/{pid}/cmdline").read_text()
    assert "hunter2" not in texts and "a longer secret" not in texts
    secrets.unlink()
    os.kill((await host.version(worker))["pid"], signal.SIGKILL)
    await until(lambda: "No such file" in host.log())


async def test_limits_and_user(host):
    options = Options(files=64, memory=300 * 1024**2, env={"PLAIN": "yes"})
    user = "nobody" if os.geteuid() == 0 else None
    program = "id -un; ulimit -n; ulimit -d; echo $PLAIN $PORT.; grep NoNewPrivs /proc/self/status; sleep 9"
    worker = host.release(
        "w", port=None, health=None, options=options, user=user, command=("sh", "-c", program), root="/"
    )
    await host.do(worker, "start", "probe")
    lines = [line.split(" ", 2)[2] for line in host.log().splitlines() if "keeper" not in line]
    assert lines[1:] == ["64", str(300 * 1024), "yes .", "NoNewPrivs:\t1"]
    assert user is None or lines[0] == user


async def test_only_root_and_its_own_user_may_ask_a_keeper(host):
    await host.do(host.release("w", port=None, health=None, command=("sleep", "9")), "start")
    path = host.folder / "keeper/control"
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    reader, writer = await asyncio.open_unix_connection(str(path))
    for sent, says in ((b"nonsense\n", b"does not understand"), (b"[1]\n", b"does not understand"),
                       (b'{"op": "fly"}\n', b"knows no request"), (b'{"op": "stop"}\n', b"does not understand"),
                       (b'{"op": "switch", "id": "x"}\n', b"start it first")):  # fmt: skip
        writer.write(sent)
        assert says in await reader.readline()
    writer.write(b"x" * 2_000_000)
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""  # too long: hung up, and still well
    writer.close()
    assert (await host.status())["ok"]
