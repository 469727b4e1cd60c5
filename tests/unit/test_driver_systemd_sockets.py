"""Who listens on a slot, and who is still connected: read from the kernel's tables, with real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from waybill.agent.drained import connections, drained
from waybill.agent.owner import fault, processes
from waybill.agent.sockets import listeners

UNIT = "waybill-hello.production-1.service"


@pytest.fixture(params=["127.0.0.1", "0.0.0.0", "::1", "::"])
def listener(request):
    """A socket that listens on some address and accepts nobody."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.socket(family) as made:
        try:
            made.bind((request.param, 0))
        except OSError:
            pytest.skip("missing: IPv6 on this machine")
        made.listen()
        yield made


@pytest.fixture
def proc(tmp_path: Path):
    """This machine's own process table, but with a control group of the test's choice for this process."""
    (tmp_path / "net").symlink_to("/proc/self/net")
    own = tmp_path / str(os.getpid())
    own.mkdir()
    (own / "fd").symlink_to("/proc/self/fd")

    def grouped(line: str) -> Path:
        (own / "cgroup").write_text(line + "\n")
        return tmp_path

    return grouped


def test_the_address_that_a_program_listens_on(listener: socket.socket):
    address, port = listener.getsockname()[:2]
    [found] = listeners(port)
    assert str(found.address) == address and found.inode == os.fstat(listener.fileno()).st_ino


@pytest.mark.parametrize(
    "line",
    [
        f"0::/system.slice/{UNIT}",
        f"0::/system.slice/{UNIT}/of-its-own",
        f"4:memory:/elsewhere\n1:name=systemd:/system.slice/{UNIT}",
    ],
)
def test_a_listener_of_the_unit_is_its_own(proc, line: str):
    with socket.create_server(("0.0.0.0", 0)) as own:
        assert fault(own.getsockname()[1], UNIT, proc(line)) == ""


@pytest.mark.parametrize(
    "line",
    [
        "0::/system.slice/other.service",
        f"0::/system.slice/{UNIT}x",
        f"0::/system.slice/x{UNIT}",
        f"0::/user.slice/user-1000.slice/user@1000.service/app.slice/{UNIT}",
        f"0::/user.slice/system.slice/{UNIT}",
        f"4:memory:/system.slice/{UNIT}",
    ],
)
def test_a_stranger_is_told_from_the_unit_whatever_it_calls_itself(proc, line: str):
    with socket.create_server(("0.0.0.0", 0)) as own:
        assert "not part of" in fault(own.getsockname()[1], UNIT, proc(line))


def test_a_stranger_beside_the_unit_on_the_same_port_is_seen(proc):
    with socket.create_server(("0.0.0.0", 0), reuse_port=True) as own:
        port = own.getsockname()[1]
        script = (
            f"import socket; s = socket.create_server(('0.0.0.0', {port}), reuse_port=True); print(flush=True); input()"
        )
        with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            other.stdout.readline()
            assert "not part of" in fault(port, UNIT, proc(f"0::/system.slice/{UNIT}"))
            other.communicate(b"\n")
        assert fault(port, UNIT, proc(f"0::/system.slice/{UNIT}")) == ""


def test_a_service_that_no_user_could_reach_is_told_what_to_do(proc):
    with socket.create_server(("127.0.0.1", 0)) as own:
        reason = fault(own.getsockname()[1], UNIT, proc(f"0::/system.slice/{UNIT}"))
    assert "127.0.0.1 alone" in reason and "0.0.0.0" in reason


def test_nobody_listening_is_told(proc):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    assert "nothing listens" in fault(port, UNIT, proc(f"0::/system.slice/{UNIT}"))


def test_this_process_is_in_no_unit_of_waybill():
    assert processes(UNIT) == []


async def test_draining_waits_for_connections_that_nobody_has_accepted():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        user = socket.create_connection(("127.0.0.1", port))
        assert connections(port) == 1
        waiting = asyncio.create_task(drained(port, 10))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        accepted, _ = server.accept()
        user.shutdown(socket.SHUT_WR)  # it has asked, and still wants the answer
        await asyncio.sleep(0.3)
        assert not waiting.done()
        accepted.close()
        user.close()
        assert await asyncio.wait_for(waiting, 2) == 0


async def test_draining_ends_when_its_time_is_over():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        begun = time.monotonic()
        assert await drained(server.getsockname()[1], 0.3) == 1
        assert 0.3 <= time.monotonic() - begun < 2


async def test_nobody_there_needs_no_waiting():
    with socket.create_server(("127.0.0.1", 0)) as server:
        begun = time.monotonic()
        assert await drained(server.getsockname()[1], 30) == 0
        assert time.monotonic() - begun < 1
