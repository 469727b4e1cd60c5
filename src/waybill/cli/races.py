"""``waybill races``: data race reports in logs, and the issues that they become."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

from waybill.cli.output import Json, ago, emit, emit_line, table
from waybill.core.errors import ConflictError, InvalidInputError

if TYPE_CHECKING:
    from waybill.races.config import Config
    from waybill.races.filing import Outcome
    from waybill.races.rules import Sighted
    from waybill.races.state import Memory, Sighting

app = cyclopts.App(
    name="waybill races",
    help="Find data races in logs, and keep one issue for each.",
    help_format="plaintext",
    version_flags=[],
)
Switch = Annotated[bool, cyclopts.Parameter(negative=())]
BATCH = 2 * 1024 * 1024
"""Bytes of reports that go to the server at once, about."""


@app.command
def scan(
    *paths: Annotated[Path, cyclopts.Parameter(allow_leading_hyphen=True)],
    dry_run: Switch = False,
    server: Switch = False,
    build: str = "",
    config: Path | None = None,
    state: Path | None = None,
    json: Json = False,
) -> int:
    """Read logs from where the last scan left them, and file what is new.

    Args:
        paths: Files and folders, compressed or not; - is standard input.
        dry_run: Say what would be done, do nothing, and remember nothing.
        server: Send the reports to the Waybill server, which files them; this machine needs no forge's token.
        build: What ran on this machine, for example a version; named in issues.
        config: races.toml, with the forge and its project; /etc/waybill/races.toml is read when it is there.
        state: Folder for what is remembered.
        json: Print one JSON object for each report, on a line of its own.
    """
    from waybill.races.config import load
    from waybill.races.reading import Reader
    from waybill.races.sources import Skipped, members

    if wrong := [path for path in paths if str(path).startswith("-") and str(path) != "-"]:
        raise InvalidInputError(f"there is no option {wrong[0]}.", "waybill races scan --help lists them.")
    if not paths:
        raise InvalidInputError("nothing is named to be read.", "Give files, folders, or - for standard input.")
    settings = load(config)
    skipped: list[Skipped] = []
    failed = False
    with _memory(state, dry=dry_run) as memory:
        found = members([path for path in paths if str(path) != "-"], skipped)
        with _progress(sum(member.size for member in found)) as counted:
            reader = Reader(memory, build, settings.name, skipped, counted)
            if Path("-") in paths:
                for one in reader.stdin(sys.stdin.buffer):
                    _show(one.report, as_json=json)
            for one in reader.files(found):
                _show(one.report, as_json=json)
        for file in skipped:
            print(f"skipped {file.path}: {file.reason}", file=sys.stderr)
        try:
            if server and not dry_run:
                _send(memory, settings)
            elif settings.forge and not server:
                failed = _file(memory, settings, dry=dry_run)
            elif waiting := len(memory.sightings("new")):
                print(f"{waiting} reports are kept here: no forge is set.", file=sys.stderr)
        finally:
            sys.stdout.flush()
    return 1 if failed or any(not Path(path).exists() for path in paths if str(path) != "-") else 0


@app.command(name="list")
def show_all(*, every: Switch = False, server: Switch = False, state: Path | None = None, json: Json = False) -> None:
    """Show the reports that need a person: mixed, cut short, or without their stacks.

    Args:
        every: All reports that are remembered, filed ones too.
        server: Those of the server.
        state: Folder for what is remembered.
        json: Print JSON.
    """
    found = _infos(state, every=every, server=server)
    if json:
        emit(found)
        return
    rows = [(one.id[:12], one.state, one.title, one.host, ago(one.at), one.issue or one.reason or "-") for one in found]
    table(("ID", "STATE", "RACE", "HOST", "SEEN", "WHY"), rows, "Nothing needs a person.")


@app.command
def show(report: str, /, *, server: Switch = False, state: Path | None = None, json: Json = False) -> None:
    """Show one report as it was read.

    Args:
        report: Its id, or the beginning of it.
        server: One of the server's.
        state: Folder for what is remembered.
        json: Print JSON.
    """
    if server:
        from waybill.cli.client import Client
        from waybill.wire.races import RaceInfo

        told = Client().call("GET", f"/api/races/{report}", RaceInfo)
    else:
        with _memory(state) as memory:
            told = _info(memory.sighting(report), text=True)
    if json:
        emit(told)
        return
    print(
        f"{told.title}\n{told.id} {told.state} {told.issue}\nseen {told.at} on {told.host}, build {told.build or '-'}"
    )
    print(f"{told.reason}\n" if told.reason else "")
    print("".join(c if c.isprintable() or c in "\n\t" else "?" for c in told.text))


@app.command
def attach(
    report: str,
    issue: str,
    /,
    *,
    server: Switch = False,
    config: Path | None = None,
    state: Path | None = None,
    json: Json = False,
) -> None:
    """Say to which issue a report belongs; later ones like it go there by themselves.

    Args:
        report: Its id, or the beginning of it.
        issue: The issue's number, or "new" for one of its own.
        server: One of the server's reports.
        config: races.toml.
        state: Folder for what is remembered.
        json: Print JSON.
    """
    number = issue.removeprefix("#")
    if number != "new" and not (number.isdecimal() and number.isascii()):
        raise InvalidInputError(f"{issue!r} is no number of an issue.", "For example 12, or new.")
    if server:
        what = {"what": "open"} if number == "new" else {"what": "attach", "issue": number}
        _decide(report, what, as_json=json)
        return
    from waybill.races.config import load, tracker
    from waybill.races.filing import Filing
    from waybill.races.state import LocalNotes

    settings = load(config)
    with _memory(state) as memory:
        sighting = _decidable(memory.sighting(report))
        forge = tracker(settings)
        try:
            filing = Filing(forge, settings.policy, LocalNotes(memory, settings.name))
            one = _sighted(sighting, settings.name)
            _outcome(filing.open(one) if number == "new" else filing.attach(one, number), as_json=json)
        finally:
            forge.close()


@app.command
def discard(report: str, /, *, server: Switch = False, state: Path | None = None, json: Json = False) -> None:
    """Say that a report is worth nothing.

    Args:
        report: Its id, or the beginning of it.
        server: One of the server's reports.
        state: Folder for what is remembered.
        json: Print JSON.
    """
    if server:
        _decide(report, {"what": "discard"}, as_json=json)
        return
    with _memory(state) as memory:
        sighting = _decidable(memory.sighting(report))
        with memory.writing():
            memory.settle(sighting.id, "discarded")
    if json:
        emit({"id": sighting.id, "state": "discarded"})
    else:
        print(f"{sighting.id[:12]} is discarded.")


def _file(memory: Memory, settings: Config, *, dry: bool) -> bool:
    """File what is new; returns whether anything could not be filed."""
    from waybill.races.config import tracker
    from waybill.races.dry import Dry
    from waybill.races.filing import Filing
    from waybill.races.state import LocalNotes

    waiting = memory.sightings("new")
    if not waiting:
        return False
    forge = tracker(settings)
    failed = False
    try:
        filing = Filing(Dry(forge) if dry else forge, settings.policy, LocalNotes(memory, settings.name))
        for outcome in filing.run([_sighted(one, settings.name) for one in waiting]):
            failed = failed or outcome.what == "failed"
            _outcome(outcome, dry=dry)
    finally:
        forge.close()
    return failed


def _send(memory: Memory, settings: Config) -> None:
    """Send what is new to the server; a report is done with once the server says that it is durable there."""
    import msgspec

    from waybill.cli.client import Client
    from waybill.wire.races import PostedRaces, SightedReport, Taken

    client = Client()

    def post(batch: list[SightedReport]) -> None:
        taken = client.call("POST", "/api/races", Taken, PostedRaces(host=settings.name, reports=batch))
        with memory.writing():
            for one in batch:
                memory.settle(one.id, "filed", "server")
        print(f"sent {len(batch)} reports to {client.login.server}, {taken.new} new", file=sys.stderr)

    batch: list[SightedReport] = []
    size = 0
    for sighting in memory.sightings("new"):
        one = SightedReport(id=sighting.id, build=sighting.build, at=sighting.at, report=sighting.report)
        length = len(msgspec.json.encode(one))
        if batch and (size + length > BATCH or len(batch) >= 500):
            post(batch)
            batch, size = [], 0
        batch.append(one)
        size += length
    if batch:
        post(batch)


def _decide(report: str, what: dict[str, str], *, as_json: bool) -> None:
    from waybill.cli.client import Client
    from waybill.wire.races import RaceInfo

    told = Client().call("POST", f"/api/races/{report}", RaceInfo, what)
    if as_json:
        emit(told)
    else:
        print(f"{told.id[:12]}: the server knows; it is {told.state}.")


def _decidable(sighting: Sighting) -> Sighting:
    if sighting.state not in ("quarantine", "new"):
        raise ConflictError(f"{sighting.id[:12]} is {sighting.state} {sighting.issue}".strip() + ", nothing waits.")
    return sighting


def _infos(state: Path | None, *, every: bool, server: bool) -> list[Any]:
    from waybill.wire.races import RaceInfo

    if server:
        from waybill.cli.client import Client

        wanted = None if every else "quarantine"
        return Client().call("GET", "/api/races", list[RaceInfo], only=wanted)
    with _memory(state) as memory:
        states = ("held", "new", "filed", "quarantine", "discarded") if every else ("quarantine",)
        return [_info(one) for one in memory.sightings(*states)]


def _info(sighting: Sighting, *, text: bool = False) -> Any:
    from waybill.wire.races import RaceInfo

    return RaceInfo(
        id=sighting.id,
        host="here",
        build=sighting.build,
        at=sighting.at,
        key_id=sighting.key_id,
        title=sighting.report.title,
        state=sighting.state,
        issue=sighting.issue,
        reason=sighting.reason,
        text=sighting.report.text if text else "",
    )


def _sighted(sighting: Sighting, host: str) -> Sighted:
    from waybill.races.rules import Sighted

    return Sighted(
        id=sighting.id,
        host=host,
        build=sighting.build,
        day=sighting.day,
        at=sighting.at,
        report=sighting.report,
    )


def _outcome(outcome: Outcome, *, dry: bool = False, as_json: bool = False) -> None:
    if as_json:
        emit(outcome)
        return
    would = "would be " if dry else ""
    where = f" #{outcome.number}" if outcome.number and len(outcome.number) < 10 else ""
    words = f"{would}{outcome.what}{where}" + (f": {outcome.reason}" if outcome.reason else "")
    print(f"{outcome.title} ({outcome.key_id}): {words}", file=sys.stderr)


@contextmanager
def _memory(folder: Path | None, *, dry: bool = False) -> Iterator[Memory]:
    from waybill.races.state import Memory, default_folder

    place = folder or default_folder()
    if not dry:
        memory = Memory(place)
    elif (place / "races.sqlite").exists():
        real = Memory(place)
        memory = real.copy()
        real.close()
    else:
        memory = Memory(None)
    try:
        yield memory
    finally:
        memory.close()


def _show(report: Any, *, as_json: bool) -> None:
    if as_json:
        emit_line(report)
        return
    what = "" if report.complete else " (mixed with another)" if report.mixed else " (incomplete)"
    print(f"{report.file}:{report.line}: {report.title}{what}")


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on a terminal, for what takes long enough to be seen; told of bytes."""
    if not sys.stderr.isatty() or total < 64 * 1024 * 1024:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=total)
        yield lambda size: shown.update(task, advance=size)
