"""How fast logs are read for data race reports, and in how much memory.

``python -m bench races`` writes two logs of 2 GB, one after the other, scans each with
the real command in a process of its own, prints a table, and deletes them. Beside it stands ``grep -c``, which only
counts the lines with the marker. Every byte of the logs is really on the disk; the page cache is warm.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYBILL = [sys.executable, "-c", "from waybill.cli.main import main; main()"]
REPORT = """\
==================
WARNING: DATA RACE
Write at 0x00c000123450 by goroutine 7:
  yard.example/crane/hook.(*Hook).Lift{n}()
      /srv/build/yard/hook.go:20 +0x14

Previous read at 0x00c000123450 by goroutine 8:
  yard.example/crane/hook.(*Hook).Drop{n}()
      /srv/build/yard/hook.go:40 +0x28

Goroutine 7 (running) created at:
  main.main()
      /srv/build/yard/main.go:60 +0x3c

Goroutine 8 (finished) created at:
  main.main()
      /srv/build/yard/main.go:61 +0x3d
==================
"""


def lines(count: int) -> bytes:
    """Lines as services write them, 60 to 160 bytes long."""
    made = []
    for n in range(count):
        path = "/api/v1/items/" + "x" * (n * 7919 % 80)
        made.append(
            f'time="2026-11-20T11:25:{n % 60:02d}.{n % 1000:03d}Z" level=info msg="GET {path} 200" ms={n % 97}\n'
        )
    return "".join(made).encode()


def write(path: Path, size: int, reports: int) -> None:
    block = lines(50_000)
    every = size // max(1, reports)
    written = made = 0
    with path.open("wb") as file:
        while written < size:
            if reports and written >= made * every and made < reports:
                written += file.write(REPORT.format(n=made % 20).encode())
                made += 1
            part = block[: max(1, min(len(block), size - written, every if reports else len(block)))]
            written += file.write(part[: part.rfind(b"\n") + 1] or part)
        os.fsync(file.fileno())


def measure(argv: list[str]) -> tuple[float, float, int, int]:
    """(seconds, seconds of processor, peak KiB, lines printed) of a command."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(argv, stdout=out, stderr=subprocess.DEVNULL)
        peak = 0
        while True:
            peak = max(peak, high_water(child.pid))  # ru_maxrss would be that of this process, if larger
            pid, _, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.005)
        child.returncode = 0
        took = time.perf_counter() - started
        out.seek(0)
        return took, usage.ru_utime + usage.ru_stime, peak, out.read().count(b"\n")


def high_water(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) if found else 0


def run(*, quick: bool) -> None:
    """Print the table."""
    size = int(3e8 if quick else 2e9)
    folder = Path(tempfile.mkdtemp(prefix="waybill-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")))
    print(f"{'what':<44} {'MB/s':>7} {'MB/s of CPU':>12} {'peak MiB':>9} {'reports':>8}")
    try:
        for reports in (0, 1000):
            log = folder / "app.log"
            write(log, size, reports)
            scan = [*WAYBILL, "races", "scan", str(log), "--state", str(folder / f"state{reports}")]
            grep = [shutil.which("grep") or "grep", "-c", "WARNING: DATA RACE", str(log)]
            for name, argv in (("waybill races scan", scan), ("grep -c, which only counts", grep)):
                wall, cpu, peak, printed = measure(argv)
                real = log.stat().st_size / 1e6
                what = f"{name}, {real / 1000:.1f} GB, {reports} reports"
                shown = printed if argv is scan else "-"
                print(f"{what:<44} {real / wall:>7.0f} {real / cpu:>12.0f} {peak / 1024:>9.1f} {shown:>8}", flush=True)
            log.unlink()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
