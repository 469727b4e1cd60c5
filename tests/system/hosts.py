"""Real Debian hosts on one machine: systemd as process 1, a network address, a disk, and the faults that befall them.

A host lives in namespaces of its own. Its mounts, network and processes exist only as long as its init does, so when
that dies (by ``power_cut``, by ``close``, or because the test run itself was killed) nothing of the host stays on the
machine but its disk file and its place on the bridge, and the next fleet sweeps those of dead runs away.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

BOOT_SECONDS = 30.0  # it takes about 2; the machine may be busy
DISK_BYTES = 512 << 20  # a sparse file
RUNS = Path(tempfile.gettempdir()) / "waybill-hosts"
T = TypeVar("T")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRON = {"PATH": PATH, "LANG": "C.UTF-8"}

# $1 folder of the host, $2 lower layers, $3 its control group, $4 its name, $5 its PATH. It waits for a line, by which
# time its network card is there, and then becomes the host.
LAUNCH = r"""
set -eu
mount -t tmpfs none "$1/mounts"; cd "$1/mounts"; mkdir cgroup disk root
mount -t cgroup2 none cgroup; mkdir -p "cgroup/$3"; echo $$ > "cgroup/$3/cgroup.procs"
mount -o loop,discard ../disk.img disk; mkdir -p disk/up disk/work
mount -t overlay -o "lowerdir=$2,upperdir=disk/up,workdir=disk/work" overlay root
echo ready; read -r go
exec unshare --pid --fork --kill-child=KILL --cgroup sh -euc '
  hostname "$1"; echo "$1" > root/etc/hostname
  mount -t proc proc root/proc; mount -t sysfs sysfs root/sys; mount -t tmpfs -o mode=755 tmpfs root/run
  mount -t cgroup2 cgroup2 root/sys/fs/cgroup; umount cgroup
  exec chroot root /usr/bin/env -i container=docker PATH="$2" \
    /lib/systemd/systemd --log-target=journal --unit=multi-user.target
' init "$4" "$5"
"""


class HostError(Exception):
    """A host did not do what the test asked of it."""


class Host:
    """One Debian machine.

    Attributes:
        name: Its host name.
        address: Its IPv4 address on the fleet's bridge.
        address6: Its IPv6 address there.
    """

    def __init__(self, fleet: Fleet, name: str, number: int, disk: int) -> None:
        self.name = name
        self.address = f"{fleet.network}.{number}"
        self.address6 = f"{fleet.network6}::{number}"
        self._fleet = fleet
        self._folder = fleet.folder / name
        self._card = f"{fleet.bridge}h{number}"
        self._launcher: subprocess.Popen[str] | None = None
        self.pid = 0
        (self._folder / "mounts").mkdir(parents=True)
        with (self._folder / "disk.img").open("wb") as file:
            file.truncate(disk)
        _do("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1", str(self._folder / "disk.img"))

    # -- power ------------------------------------------------------------------------------------------------------

    def boot(self, *, healthy: bool = True) -> Host:
        """Switch the host on and wait until systemd says that it is up; without ``healthy``, units may have failed."""
        with (self._folder / "console").open("a") as console:
            self._launcher = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--net", "--uts", "--ipc",
                 "--propagation", "private", "sh", "-c", LAUNCH, "launch", str(self._folder),
                 ":".join(map(str, self._fleet.lower)), f"{self._fleet.bridge}/{self.name}", self.name, PATH],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=console, text=True, start_new_session=True,
            )  # fmt: skip
        assert self._launcher.stdin and self._launcher.stdout
        if self._launcher.stdout.readline() != "ready\n":
            raise HostError(f"{self.name} has no disk: {(self._folder / 'console').read_text()[-500:]}")
        self._plug_in(self._launcher.pid)
        self._launcher.stdin.write("go\n")
        self._launcher.stdin.flush()
        self.pid = wait_for(self._init, f"{self.name} to start its init", BOOT_SECONDS)
        try:
            wait_for(lambda: self._is_up(healthy=healthy), f"{self.name} to boot", BOOT_SECONDS)
        except HostError as error:
            said = self.run(["sh", "-c", "systemctl list-jobs; journalctl -b -n 40 --no-pager"], check=False).stdout
            raise HostError(f"{error}\n{said}") from error
        return self

    def power_cut(self) -> None:
        """Everything on the host is gone at once, except what is on its disk."""
        if self._launcher is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid or self._launcher.pid, signal.SIGKILL)  # the launcher ends with the init it waits for
        self._launcher.communicate(timeout=BOOT_SECONDS)
        self._launcher = None
        # The kernel takes the dead host's network away a moment later; the card's name must be free to boot again.
        subprocess.run(["ip", "link", "del", self._card], capture_output=True, check=False)
        self.pid = 0

    # -- doing things on it -----------------------------------------------------------------------------------------

    def run(
        self, argv: Sequence[str], *, check: bool = True, stdin: str = "", timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the host as its root and wait for it."""
        done = subprocess.run(
            self._entering(argv), input=stdin, capture_output=True, text=True, check=False, timeout=timeout, env=ENVIRON
        )
        if check and done.returncode:
            raise HostError(f"{self.name}: {argv} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def talk(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """Start a program that a person talks with; both of its outputs are its stdout."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self._entering(argv), stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=ENVIRON
        )

    def unit(self, name: str, argv: Sequence[str], **properties: str) -> None:
        """Start a program that goes on running, as a transient unit: what ``run`` leaves behind dies with it."""
        options = [f"--property={key}={value}" for key, value in properties.items()]
        self.run(["systemd-run", "-q", f"--unit={name}", *options, "--", *argv])

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        """Put a file on the host."""
        script = 'mkdir -p "$(dirname "$1")" && cat > "$1" && chmod "$2" "$1"'
        self.run(["sh", "-c", script, "write", path, f"{mode:o}"], stdin=content)

    def read(self, path: str) -> str:
        """What a file on the host holds."""
        return self.run(["cat", path]).stdout

    # -- faults -----------------------------------------------------------------------------------------------------

    def partition(self) -> None:
        """Pull the network cable."""
        _do("ip", "link", "set", self._card, "down")

    def heal(self) -> None:
        """Plug it in again."""
        _do("ip", "link", "set", self._card, "up")

    def fill_disk(self) -> None:
        """Leave no free block on the host's disk, also when somebody on it (the journal) clears up."""
        script = "while :; do cat /dev/zero >> /var/filler; sync /var/filler; sleep 0.05; done 2>/dev/null"
        self.unit("filler", ["sh", "-c", script])
        nothing_fits = (
            "for try in 1 2 3 4 5; do head -c 5000 /dev/zero > /var/fill.$$.$try && exit 1; sleep 0.1; done; exit 0"
        )
        wait_for(lambda: self.run(["sh", "-c", nothing_fits], check=False).returncode == 0, "the disk to be full", 20)

    def free_disk(self) -> None:
        """Undo ``fill_disk``."""
        self.run(["systemctl", "stop", "filler"], check=False)  # it is gone after a reboot
        self.run(["sh", "-c", "rm -f /var/fill*"])

    def _entering(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", *argv]

    # -- inside -----------------------------------------------------------------------------------------------------

    def _plug_in(self, pid: int) -> None:
        _do("ip", "link", "add", self._card, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        _do("ip", "link", "set", self._card, "master", self._fleet.bridge, "up")
        inside = ("nsenter", "-t", str(pid), "-n", "ip")
        _do(*inside, "link", "set", "lo", "up")
        _do(*inside, "address", "add", f"{self.address}/24", "dev", "eth0")
        _do(*inside, "address", "add", f"{self.address6}/64", "dev", "eth0", "nodad")
        _do(*inside, "link", "set", "eth0", "up")

    def _init(self) -> int:
        assert self._launcher
        if self._launcher.poll() is not None:
            raise HostError(f"{self.name} did not start: {(self._folder / 'console').read_text()[-500:]}")
        children = Path(f"/proc/{self._launcher.pid}/task/{self._launcher.pid}/children").read_text().split()
        started = [int(child) for child in children if Path(f"/proc/{child}/comm").read_text() == "systemd\n"]
        return started[0] if started else 0

    def _is_up(self, *, healthy: bool) -> bool:
        state = self.run(["systemctl", "is-system-running"], check=False).stdout.strip()
        if state == "degraded" and not healthy:
            return True
        if state == "degraded":
            raise HostError(f"{self.name} is degraded: {self.run(['systemctl', '--failed', '--plain']).stdout}")
        return state == "running"


class Fleet:
    """Hosts that share one bridge; the machine of the tests is on it as ``gateway``."""

    def __init__(self, lower: Sequence[Path]) -> None:
        self.lower = lower
        _sweep()
        for number in range(1, 255):
            if (
                subprocess.run(["ip", "link", "add", f"wb{number}", "type", "bridge"], capture_output=True).returncode
                == 0
            ):
                break
        else:
            raise HostError("254 fleets of test hosts are up already; ip link shows their bridges wb1 to wb254")
        self.bridge = f"wb{number}"
        self.network = f"10.213.{number}"
        self.network6 = f"fd77:6279:6c6c:{number:x}"
        self.gateway = f"{self.network}.254"
        self.folder = RUNS / self.bridge
        self.folder.mkdir(parents=True)
        (self.folder / "owner").write_text(str(os.getpid()))
        self.hosts: list[Host] = []
        _do("ip", "address", "add", f"{self.gateway}/24", "dev", self.bridge)
        _do("ip", "address", "add", f"{self.network6}::fe/64", "dev", self.bridge, "nodad")
        _do("ip", "link", "set", self.bridge, "up")

    def host(self, name: str, disk: int = DISK_BYTES) -> Host:
        """A new host, not booted yet; ``disk`` is in bytes."""
        self.hosts.append(Host(self, name, len(self.hosts) + 1, disk))
        return self.hosts[-1]

    def close(self) -> None:
        """Take all hosts and the bridge away."""
        for host in self.hosts:
            host.power_cut()
        _remove(self.folder)


def wait_for(look: Callable[[], T], what: str, seconds: float = 10.0) -> T:
    """Poll until ``look`` returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if found := look():
                return found
        if time.monotonic() > deadline:
            raise HostError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.02)


def _do(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise HostError(f"{' '.join(argv)}: {done.stderr.strip()}")


def _sweep() -> None:
    """Take away what runs that were killed could not."""
    for owner in RUNS.glob("*/owner"):
        if not Path(f"/proc/{owner.read_text()}").exists():
            _remove(owner.parent)


def _remove(folder: Path) -> None:
    """Everything of one fleet: its control groups (and whoever is still in one), its bridge, its disks."""
    script = """
      mount -t cgroup2 none "$1" && cd "$1/$2" 2>/dev/null || exit 0
      for group in */; do echo 1 > "$group/cgroup.kill"; done
      for try in 1 2 3 4 5 6 7 8 9 10; do find . -depth -type d -exec rmdir {} + 2>/dev/null && exit 0; sleep 0.1; done
      cd ..; rmdir "$2"
    """
    mountpoint = folder / "cgroup"
    mountpoint.mkdir(exist_ok=True)
    subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "remove", str(mountpoint), folder.name],
        check=False, timeout=30, stdout=sys.stderr,
    )  # fmt: skip
    subprocess.run(["ip", "link", "del", folder.name], capture_output=True, check=False)
    shutil.rmtree(folder)
