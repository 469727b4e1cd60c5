"""Where the kernel does not let a new keeper take a socket back, the version replaces itself without a gap."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from demo.load import Load

from support.kept import HELLO, SOURCE, Host, until
from support.need import need_program

pytestmark = pytest.mark.flow
UNDUMPABLE = (
    "import ctypes, runpy, sys; ctypes.CDLL(None).prctl(4, 0); runpy.run_path(sys.argv[1], run_name='__main__')"
)


async def scenario(folder: Path) -> None:
    """Without the right to look into every process, with a service that nobody but root may look into."""
    host = Host(folder)
    one = host.release("one", command=(sys.executable, "-S", "-c", UNDUMPABLE, str(HELLO)))
    await host.do(one, "start", "probe", "switch")
    first = (await host.version(one))["pid"]
    load = Load(host.port, fresh=4, kept=4, allowed={"one"}.__contains__)
    await asyncio.sleep(0.3)
    await host.kill_keeper()
    await asyncio.sleep(0.2)
    await host.status()
    assert "cannot be taken back" in host.log()
    for _ in range(500):
        versions = (await host.status())["versions"]
        if [v["id"] for v in versions] == [one.id] and versions[0]["pid"] != first:
            break
        await asyncio.sleep(0.02)
    else:
        raise AssertionError(versions)
    tally = await load.stop()
    assert not tally.lost, tally.details
    two = host.release("two")
    await host.do(two, "start", "probe", "switch")
    await host.do(one, "stop")
    load = Load(host.port, fresh=4, kept=4, allowed={"two"}.__contains__)
    await asyncio.sleep(0.3)
    assert not (await load.stop()).lost
    await host.clear()
    await until(lambda: not host.processes())


def test_a_version_whose_socket_cannot_be_taken_back_replaces_itself(tmp_path):
    if os.geteuid() != 0:
        asyncio.run(scenario(tmp_path))
        return
    # root may look into anything; without this capability it may look into what an ordinary user may
    setpriv = need_program("setpriv", "util-linux")
    done = subprocess.run(
        [setpriv, "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace",
         sys.executable, str(Path(__file__)), str(tmp_path)],
        env={"PATH": os.environ["PATH"], "HOME": "/", "PYTHONPATH": f"{SOURCE}:{HELLO.parents[1]}:{HELLO.parents[2]}"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout


if __name__ == "__main__":
    asyncio.run(scenario(Path(sys.argv[1])))
