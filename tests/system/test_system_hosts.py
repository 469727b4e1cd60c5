"""The test hosts themselves: that they are what the other system tests take them for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from system.hosts import Fleet, HostError, wait_for

pytestmark = [pytest.mark.flow, pytest.mark.system]


def answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=0.3).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def pair(fleet: Fleet):
    return fleet.host("one").boot(), fleet.host("two").boot()


def test_hosts_are_debian_with_systemd_and_an_address(pair):
    one, two = pair
    assert one.run(["hostname"]).stdout == "one\n"
    assert one.run(["cat", "/proc/1/comm"]).stdout == "systemd\n"
    assert "bookworm" in one.read("/etc/os-release")
    two.unit("web", ["python3", "-m", "http.server", "80", "--directory", "/etc"])
    wait_for(lambda: answers(two.address, 80), "two to answer")
    page = one.run(
        ["python3", "-c", f"import urllib.request as u; print(u.urlopen('http://{two.address}/hostname').status)"]
    )
    assert page.stdout == "200\n"


def test_waybill_of_this_checkout_is_installed(pair):
    assert pair[0].run(["/opt/waybill/bin/waybill", "--version"]).stdout.startswith("waybill ")


def test_what_a_host_does_stays_on_it(pair):
    one, two = pair
    one.run(["nft", "add table inet here"])
    one.write("/srv/note", "mine")
    assert "here" not in two.run(["nft", "list", "tables"]).stdout
    assert "inet here" not in subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
    with pytest.raises(HostError):
        two.read("/srv/note")


def test_partition_and_heal(pair):
    _, two = pair
    two.unit("echo", ["python3", "-m", "http.server", "81"])
    wait_for(lambda: answers(two.address, 81), "two to answer")
    two.partition()
    assert not answers(two.address, 81)
    two.heal()
    wait_for(lambda: answers(two.address, 81), "two to answer again")


def test_a_power_cut_keeps_the_disk_and_nothing_else(pair):
    one, _ = pair
    one.write("/srv/kept", "on disk")
    one.write("/run/lost", "in memory")
    one.run(["nft", "add table inet lost"])
    one.power_cut()
    assert not answers(one.address, 22)
    one.boot()
    assert one.read("/srv/kept") == "on disk"
    assert one.run(["ls", "/run/lost"], check=False).returncode
    assert "lost" not in one.run(["nft", "list", "tables"]).stdout


def test_a_full_disk_refuses_a_write_and_can_be_freed(pair):
    _, two = pair
    two.fill_disk()
    full = two.run(["sh", "-c", "head -c 1000000 /dev/zero > /srv/more"], check=False)
    assert "No space left" in full.stderr
    two.free_disk()
    two.run(["sh", "-c", "head -c 1000000 /dev/zero > /srv/more"])


def test_nothing_is_left_after_a_fleet(disk_layers):
    fleet = Fleet(disk_layers)
    host = fleet.host("gone").boot()
    pid, bridge, folder = host.pid, fleet.bridge, fleet.folder
    fleet.close()
    assert not Path(f"/proc/{pid}").exists() and not folder.exists()
    assert bridge not in subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
    assert str(folder) not in Path("/proc/mounts").read_text()
    assert str(folder) not in subprocess.run(["losetup", "-a"], capture_output=True, text=True).stdout


def test_a_killed_run_leaves_no_process_and_the_next_one_sweeps_the_rest(disk_layers):
    script = """if True:
        import sys
        from pathlib import Path
        from system.hosts import Fleet

        fleet = Fleet([Path(layer) for layer in sys.argv[1:]])
        print(fleet.host("orphan").boot().pid, fleet.folder, flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, disk_layers)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        pid, folder = run.stdout.readline().split()
        run.kill()
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the orphan's init to end")
    assert Path(folder).exists()
    Fleet(disk_layers).close()
    assert not Path(folder).exists()
    assert Path(folder).name not in subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout.split()
