"""The disk that every test host starts from: Debian 12, made once and kept in the user's cache.

Three layers, laid over each other by the kernel: Debian itself (debootstrap, about 50 s, once), the agent's locked
dependencies (once for each lock file) and waybill from this checkout (once for each session). Nothing of it is in git.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SUITE = "bookworm"
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "python3", "python3-venv", "git", "ca-certificates", "nftables", "iproute2",
    "conntrack", "procps", "openssh-server",
)  # fmt: skip
CHECKOUT = Path(__file__).parents[2]
VENV = "opt/waybill"
SITE = f"{VENV}/lib/python3.11/site-packages"
MISSING = {"debootstrap": "debootstrap", "nft": "nftables", "ip": "iproute2", "mkfs.ext4": "e2fsprogs"}


def missing() -> str:
    """What this machine lacks to run real hosts, as a phrase; empty when it lacks nothing."""
    if os.geteuid() != 0:
        return "root"
    packages = [package for tool, package in MISSING.items() if shutil.which(tool) is None]
    if packages:
        return f"the packages {' '.join(packages)}"
    return "" if mirror() else f"an apt source that has Debian {SUITE}"


def mirror() -> str:
    """The address from which apt itself fetches Debian 12 here; empty when it has none."""
    if shutil.which("apt-get") is None:
        return ""
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
        capture_output=True, text=True, check=False, timeout=60,
    ).stdout  # fmt: skip
    rows = (line.split() for line in listing.splitlines())
    return next((row[0] for row in rows if row[1:] == [SUITE, "main"]), "")


def layers(session: Path) -> list[Path]:
    """The folders of a host's disk, uppermost first, made where the cache does not have them.

    Args:
        session: An empty folder that gets this checkout's waybill.
    """
    lock = CHECKOUT / "requirements" / "host.txt"
    debian, cache = bare(session)[-1], _cache()
    with _exclusive(cache / "lock"):
        libraries = _cached(cache / f"libraries-{_digest(lock.read_text())}", _install_locked)
    _install(session, "--no-deps", "--no-build-isolation", str(CHECKOUT))
    command = session / VENV / "bin" / "waybill"
    command.parent.mkdir(parents=True)
    command.write_text(f"#!/{VENV}/bin/python3\nfrom waybill.cli.main import main\nmain()\n")
    command.chmod(0o755)
    return [session, libraries, debian]


def bare(session: Path) -> list[Path]:
    """The same without waybill: Debian, as a person finds it.

    Args:
        session: An empty folder.
    """
    cache = _cache()
    with _exclusive(cache / "lock"):
        debian = _cached(cache / f"debian-{_digest(SUITE, *PACKAGES)}", _debootstrap)
    units = session / "etc/systemd/system"
    units.mkdir(parents=True)
    for name in ("getty.target", "console-getty.service"):  # the terminals are those of the machine outside
        (units / name).symlink_to("/dev/null")
    return [session, debian]


def wheels(lock: Path) -> Path:
    """A folder with the wheels that a lock file names, for hosts that reach no package index; kept in the cache."""

    def fetch(folder: Path) -> None:
        argv = [sys.executable, "-m", "pip", "download", "-q", "--require-hashes", "--only-binary", ":all:"]
        argv += ["--python-version", "3.11", "-r", str(lock), "-d", str(folder)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            raise RuntimeError(f"pip download failed: {done.stderr[-800:]}")

    cache = _cache()
    with _exclusive(cache / "lock"):
        return _cached(cache / f"wheels-{_digest(lock.read_text())}", fetch)


def _cache() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "waybill-tests"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _debootstrap(root: Path) -> None:
    argv = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root), mirror()]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=570)
    if done.returncode:
        raise RuntimeError(f"debootstrap failed: {done.stdout[-800:]}")
    subprocess.run(["chroot", str(root), "python3", "-m", "venv", "--without-pip", f"/{VENV}"], check=True, timeout=60)
    shutil.rmtree(root / "var/cache/apt")
    (root / "etc/resolv.conf").unlink(missing_ok=True)  # a host resolves nothing: it has no way out
    (root / "etc/machine-id").write_text("")


def _install_locked(root: Path) -> None:
    _install(root, "--compile-bytecode", "--require-hashes", "-r", str(CHECKOUT / "requirements" / "host.txt"))


def _install(root: Path, *what: str) -> None:
    uv = Path(sys.executable).parent / "uv"
    target = ["--target", str(root / SITE), "--python-version", "3.11", "--link-mode", "copy"]
    subprocess.run([str(uv), "pip", "install", "-q", *target, *what], check=True, timeout=300, cwd=CHECKOUT)


def _cached(path: Path, make: Callable[[Path], None]) -> Path:
    if not path.exists():
        unfinished = path.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        make(unfinished)
        unfinished.rename(path)
    return path


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
