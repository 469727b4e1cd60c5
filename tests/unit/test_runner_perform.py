"""Commands act as they say, tell what failed, and leave nothing behind."""

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path

import pytest

from waybill.agent.runner import TAIL, perform
from waybill.drivers.model import Health, Probe, Put, Run

PYTHON = (sys.executable, "-S", "-c")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_run_succeeds_and_shows_what_was_written():
    result = await perform(Run(argv=("sh", "-c", "echo out; echo err >&2; cat"), stdin="in"))
    assert result.ok and result.output == "out\nerr\nin"


async def test_run_fails_with_a_sentence():
    result = await perform(Run(argv=("sh", "-c", "echo why; exit 3")))
    assert not result.ok and result.reason == "sh ended with status 3." and result.output == "why\n"
    assert (await perform(Run(argv=("sh", "-c", "exit 3"), accept=(0, 3)))).ok
    assert "cannot run /nowhere/x: No such file" in (await perform(Run(argv=("/nowhere/x",)))).reason
    assert "no such folder" in (await perform(Run(argv=("true",), cwd="/nowhere"))).reason
    assert "signal 9" in (await perform(Run(argv=("sh", "-c", "kill -9 $$")))).reason
    assert "no such user" in (await perform(Run(argv=("true",), user="no-such-user-here"))).reason


async def test_run_has_few_variables(monkeypatch):
    monkeypatch.setenv("AGENT_SECRET", "hunter2")
    result = await perform(Run(argv=("env",), environment={"GIVEN": "1"}))
    names = {line.partition("=")[0] for line in result.output.splitlines()}
    assert names == {"PATH", "LANG", "HOME", "USER", "LOGNAME", "GIVEN"}


async def test_run_ends_the_whole_group_when_it_takes_too_long(tmp_path):
    script = f"trap '' TERM; sleep 60 & echo $! > {tmp_path}/child; wait; wait; sleep 60"
    began = time.monotonic()
    result = await perform(Run(argv=("sh", "-c", "sleep 60 & echo $! > child; wait"), cwd=str(tmp_path), timeout=0.3))
    assert not result.ok and "took longer than 0.3 s" in result.reason and time.monotonic() - began < 3
    assert not alive(int((tmp_path / "child").read_text()))
    task = asyncio.create_task(perform(Run(argv=("sh", "-c", script), cwd=str(tmp_path))))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(int((tmp_path / "child").read_text()))


async def test_run_leaves_no_child_in_the_background(tmp_path):
    result = await perform(Run(argv=("sh", "-c", "sleep 60 & echo $! > child; echo done"), cwd=str(tmp_path)))
    assert result.ok and result.output == "done\n"
    assert not alive(int((tmp_path / "child").read_text()))


async def test_a_flood_keeps_its_tail_and_lines_are_streamed():
    lines: list[str] = []
    program = "import sys\nfor n in range(300000): sys.stdout.write('line %d\\n' % n)"
    result = await perform(Run(argv=(*PYTHON, program)), lines.append)
    assert result.ok and len(result.output) <= TAIL and result.output.endswith("line 299999\n")
    assert lines == [f"line {n}" for n in range(300000)]


@pytest.mark.skipif(os.geteuid() != 0, reason="missing: root, to run as another user")
async def test_run_as_another_user():
    result = await perform(Run(argv=("id",), user="nobody", cwd="/"))
    assert "uid=65534(nobody)" in result.output and "groups=65534(nogroup)" in result.output


async def test_put_writes_whole_or_not_at_all(tmp_path):
    path = tmp_path / "sub" / "file"
    assert (await perform(Put(path=str(path), content="grüße", mode=0o600))).ok
    assert path.read_text() == "grüße" and path.stat().st_mode & 0o777 == 0o600
    assert (await perform(Put(path=str(path), content="new"))).ok
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o644
    (tmp_path / "folder").mkdir()
    result = await perform(Put(path=str(tmp_path / "folder"), content="x"))
    assert not result.ok and "cannot write" in result.reason
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "sub"]


async def serve(answer):
    async def handle(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # a probe may go before it has asked
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(("answer", "ok", "says", "shows"), [
    (b"HTTP/1.1 204 No Content\r\n\r\n", True, "", ""),
    (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", True, "", ""),
    (b"HTTP/1.1 500 Oops\r\n\r\nbody\x1b[31m" + b"x" * 5000, False, "HTTP/1.1 500 Oops", "body.[31mxxx"),
    (b"HTTP/1.1 404 Not Found\r\n\r\n", False, "404", "404"),
    (b"SSH-2.0-OpenSSH\r\n\r\n", False, "not answer in HTTP", "SSH-2.0"),
])  # fmt: skip
async def test_probe_judges_the_answer(answer, ok, says, shows):
    server, port = await serve(answer)
    async with server:
        result = await perform(Probe(port=port, health=Health(path="/", within=0.3)))
    assert result.ok is ok and says in result.reason and shows in result.output
    assert len(result.output) <= TAIL


async def test_probe_without_a_path_wants_a_connection():
    server, port = await serve(b"")
    async with server:
        assert (await perform(Probe(port=port, health=Health(within=1)))).ok
    result = await perform(Probe(port=port, health=Health(within=0.2)))
    assert not result.ok and f"port {port}" in result.reason


async def test_probe_takes_the_answer_of_nobody_but_the_owner():
    server, port = await serve(b"HTTP/1.1 200 OK\r\n\r\n")
    async with server:
        result = await perform(
            Probe(port=port, health=Health(path="/", within=0.5), owner="unit:waybill-no-such.service")
        )
    assert not result.ok and "another process" in result.reason
