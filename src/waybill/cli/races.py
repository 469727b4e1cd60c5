"""``waybill races``: data race reports in logs, and the issues that they become."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import cyclopts

from waybill.cli.output import Json, emit_line

app = cyclopts.App(
    name="waybill races", help="Find data races in logs, and keep one issue for each.", help_format="plaintext",
    version_flags=[],
)  # fmt: skip
Switch = Annotated[bool, cyclopts.Parameter(negative=())]


@app.command
def scan(
    *paths: Annotated[Path, cyclopts.Parameter(allow_leading_hyphen=True)],
    dry_run: Switch = False,
    build: str = "",
    state: Path | None = None,
    json: Json = False,
) -> int:
    """Read logs from where the last scan left them.

    Args:
        paths: Files and folders, compressed or not; - is standard input.
        dry_run: Say what would be done, do nothing, and remember nothing.
        build: What ran on this machine, for example a version; named in issues.
        state: Folder for what is remembered.
        json: Print one JSON object for each report, on a line of its own.
    """
    from waybill.core.errors import InvalidInputError
    from waybill.races.reading import Reader
    from waybill.races.sources import Skipped, members
    from waybill.races.state import Memory, default_folder

    if wrong := [path for path in paths if str(path).startswith("-") and str(path) != "-"]:
        raise InvalidInputError(f"there is no option {wrong[0]}.", "waybill races scan --help lists them.")
    if not paths:
        raise InvalidInputError("nothing is named to be read.", "Give files, folders, or - for standard input.")
    folder = state or default_folder()
    memory = Memory(folder) if not dry_run or (folder / "races.sqlite").exists() else Memory(None)
    if dry_run:
        memory = memory.copy()
    skipped: list[Skipped] = []
    try:
        found = members([path for path in paths if str(path) != "-"], skipped)
        with _progress(sum(member.size for member in found)) as counted:
            reader = Reader(memory, build, skipped, counted)
            if Path("-") in paths:
                for one in reader.stdin(sys.stdin.buffer):
                    _show(one.report, json)
            for one in reader.files(found):
                _show(one.report, json)
    finally:
        memory.close()
    for file in skipped:
        print(f"skipped {file.path}: {file.reason}", file=sys.stderr)
    return 0


def _show(report: Any, as_json: bool) -> None:  # noqa: FBT001 - as the commands have it
    if as_json:
        emit_line(report)
        return
    what = "" if report.complete else " (mixed with another)" if report.mixed else " (incomplete)"
    print(f"{report.file}:{report.line}: {report.title}{what}")


def _progress(total: int) -> Any:
    """A bar on a terminal, for what takes long enough to be seen; told of bytes."""
    from contextlib import contextmanager

    @contextmanager
    def bar() -> Any:
        if not sys.stderr.isatty() or total < 64 * 1024 * 1024:
            yield lambda _: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        console = Console(stderr=True)
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as shown:
            task = shown.add_task("", total=total)
            yield lambda size: shown.update(task, advance=size)

    return bar()
