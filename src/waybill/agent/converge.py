"""Drives one service and environment from where it stands to where it should be.

The loop asks ``rules.next_step``, performs that one step, stores how far it came and asks again. Whatever a person or
the server says meanwhile is on disk before the loop is woken; a step that is no longer wanted is cancelled, with the
programs that it started. Only the switch itself, from the first command to ``live.json``, is never cut short.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from waybill.agent import placing, rules, variables
from waybill.agent.placing import Placer
from waybill.agent.state import Attempt, Folder, Home, Live, Placed, Rollback, Told, options_of
from waybill.core import clock
from waybill.core.errors import ForbiddenError, InvalidInputError, NotFoundError, UnavailableError, WaybillError
from waybill.drivers import model
from waybill.wire.agent import Report, State

log = logging.getLogger("waybill.agent")
EVIDENCE = 4096
RETRY = 5.0
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 15.0
Health = Literal["unknown", "healthy", "failing", "restarting", "stopped"]


class Result(Protocol):
    """How a command of a driver ended."""

    @property
    def ok(self) -> bool:
        """Whether it did what it should."""
        ...

    @property
    def output(self) -> str:
        """What was seen."""
        ...

    @property
    def reason(self) -> str:
        """One sentence when it did not."""
        ...


Perform = Callable[[model.Command], Awaitable[Result]]


class StepFailedError(WaybillError):
    """A command of a driver or a function did not do what it should.

    Attributes:
        evidence: What was seen.
    """

    def __init__(self, reason: str, evidence: str) -> None:
        super().__init__(reason)
        self.evidence = evidence[-EVIDENCE:]


class Service:
    """One service and environment on this host.

    Args:
        home: The agent's folder.
        folder: Its own part of it.
        placer: Lays releases out.
        perform: Performs a driver's command.
        report: Takes what the server should know.
    """

    def __init__(
        self, home: Home, folder: Folder, placer: Placer, perform: Perform, report: Callable[[Report], None]
    ) -> None:
        self.folder = folder
        self._home = home
        self._placer = placer
        self._perform = perform
        self._report = report
        self._changed = asyncio.Event()
        self._retiring: asyncio.Task[None] | None = None
        self.trouble = ""
        self._pause = FIRST_PAUSE
        self._health: Health = "unknown"
        self._last: Report | None = None
        self._opened: dict[str, dict[str, str]] = {}

    def poke(self) -> None:
        """Something on disk has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Go on for ever; cancelled at the end, which stops nothing that serves."""
        await self.resume()
        self._retire()
        try:
            while True:
                self._changed.clear()
                try:
                    step = self._next()
                    if not isinstance(step, rules.Rest):
                        await self._supervise(step)
                        continue
                    self._tell(step.state)
                except (WaybillError, OSError) as error:
                    self.trouble = str(error)
                    log.warning("%s: %s", self.folder.key, error)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(RETRY):
                            await self._changed.wait()
                else:
                    await self._changed.wait()
        finally:
            if self._retiring:
                self._retiring.cancel()
                await asyncio.gather(self._retiring, return_exceptions=True)

    async def settle(self) -> State:
        """Go on until there is nothing more to do, for commands that work without a running agent."""
        await self.resume()
        self._retire()
        while not isinstance(step := self._next(), rules.Rest):
            await self._do(step)
        if self._retiring:
            await self._retiring
        self._tell(step.state)
        return step.state

    async def resume(self) -> None:
        """After the agent was away: bring up what is live, which changes nothing where it serves already.

        It leaves no task behind: asyncio waits for ever for a program whose start is cancelled with the loop (3.11).
        """
        attempt, live = self.folder.attempt(), self.folder.live()
        if live and not self.folder.told().removed:
            undecided = attempt is not None and attempt.switching and rules.unfinished(attempt, live)
            try:
                await self._open(live.placed)
                await self._commands("start", live.placed, None)
                if not undecided:
                    await self._commands("switch", live.placed, None)
            except (WaybillError, OSError) as error:
                self.trouble = f"what was live could not be brought up again: {error}"
                self._health = "failing"
                log.warning("%s: %s", self.folder.key, self.trouble)
        if attempt and attempt != rules.resumed(attempt):  # last: on a full disk it fails
            self.folder.store(rules.resumed(attempt))

    async def _supervise(self, step: rules.Step) -> None:
        task = asyncio.create_task(self._do(step))
        waiter = asyncio.create_task(self._changed.wait())
        try:
            while not task.done():
                await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
                if not task.done() and waiter.done():
                    self._changed.clear()
                    waiter = asyncio.create_task(self._changed.wait())
                    if not isinstance(self._next(), (type(step), rules.Rest)) and not _whole(step):
                        task.cancel()
        finally:
            task.cancel()
            waiter.cancel()
            await asyncio.wait({task, waiter})
        if not task.cancelled():
            task.result()

    def _next(self) -> rules.Step:
        folder = self.folder
        if wish := folder.rollback():
            self._roll_back(wish)
        return rules.next_step(
            folder.told(),
            folder.attempt(),
            folder.live(),
            held=folder.held,
            exists=folder.releases.exists(),
        )

    async def _do(self, step: rules.Step) -> None:
        told, attempt, live = self.folder.told(), self.folder.attempt(), self.folder.live()
        match step:
            case rules.Begin():
                self._begin(told)
            case rules.Adopt():
                self._adopt(told, live)
            case rules.Judge(verdict, reason) if attempt:
                self.folder.store(msgspec.structs.replace(attempt, verdict=verdict, reason=reason))
            case rules.Undo() if attempt:
                await self._undo(attempt, live)
            case rules.Erase():
                await self._erase(attempt, live)
            case rules.Continue(stage) if attempt:
                self._tell(stage)
                try:
                    await self._stage(told, attempt, live)
                except UnavailableError as error:
                    self.trouble = error.reason
                    self._tell("waiting" if stage == "fetching" else stage)
                    self._pause = min(self._pause * 2, LONGEST_PAUSE)
                    await asyncio.sleep(random.uniform(0.1, self._pause))  # noqa: S311 - spreads load, guards nothing
                except (WaybillError, OSError) as error:
                    self._fail(error)

    def _begin(self, told: Told) -> None:
        wanted = told.wanted()
        if wanted is None:
            return
        self.trouble = ""
        self._pause = FIRST_PAUSE
        self.folder.store(
            Attempt(sequence=wanted.sequence, rollout=told.rollout, release=placing.new_release(wanted), at=told.at)
        )

    def _adopt(self, told: Told, live: Live | None) -> None:
        wanted = told.wanted()
        if wanted and live:
            release = msgspec.structs.replace(live.placed.release, sequence=wanted.sequence)
            placed = msgspec.structs.replace(live.placed, manifest=wanted, sealed=told.sealed, release=release)
            self.folder.store(msgspec.structs.replace(live, placed=placed, took=_since(told.at) if told.at else 0))

    async def _stage(self, told: Told, attempt: Attempt, live: Live | None) -> None:
        replace = msgspec.structs.replace
        if attempt.stage == "fetching":
            wanted = told.wanted()
            if attempt.again:
                placed = await self._placer.place_again(self.folder, attempt.again, attempt)
            elif wanted:
                placed = await self._placer.place(self.folder, wanted, told, attempt)
            else:
                return
            self.folder.store(replace(attempt, stage="preparing", placed=placed))
            return
        placed = self._placed(attempt)
        previous = live.placed if live else None
        match attempt.stage:
            case "preparing":
                await self._open(placed)
                for name in await self._functions(placed, "before", once=told.once):
                    if name not in attempt.ran:
                        await self._function(placed, name)
                        attempt = replace(attempt, ran=(*attempt.ran, name))
                        self.folder.store(attempt)
                self.folder.store(replace(attempt, stage="starting", started=True))
            case "starting":
                await self._commands("start", placed, previous)
                self.folder.store(replace(attempt, stage="probing"))
            case "probing":
                await self._commands("probe", placed, previous)
                self.folder.store(replace(attempt, stage="switching", switching=True))
            case "switching":
                await self._commands("switch", placed, previous)
                self.folder.point(attempt.release)
                self._went_live(attempt, placed, live)
                self._tell("live")
                await self._after(placed)
                self._retire()

    def _went_live(self, attempt: Attempt, placed: Placed, live: Live | None) -> None:
        took = (clock.now() - clock.parse(attempt.at)).total_seconds() * 1000 if attempt.at else 0
        self.folder.store(
            Live(
                placed=placed,
                previous=live.placed if live else None,
                retiring=(*live.retiring, live.placed) if live else (),
                since=clock.stamp(),
                took=max(0, round(took)),
            )
        )
        self.trouble, self._health = "", "healthy" if placed.release.health else "unknown"
        self._note(f"{attempt.release} live")

    async def _after(self, placed: Placed) -> None:
        try:
            for name in await self._functions(placed, "after", once=self.folder.told().once):
                await self._function(placed, name)
        except (WaybillError, OSError) as error:
            self.trouble = f"it is live, but a function that should run afterwards failed: {error}"
            self._tell("live")
        self._opened.pop(placed.release.id, None)

    def _fail(self, error: WaybillError | OSError) -> None:
        attempt = self.folder.attempt()
        if attempt is None:
            return
        reason = str(error) if isinstance(error, WaybillError) else f"{error.strerror or error}."
        verdict: Literal["failed", "refused"] = "refused" if isinstance(error, ForbiddenError) else "failed"
        evidence = getattr(error, "evidence", "")
        log.warning("%s sequence %d %s: %s", self.folder.key, attempt.sequence, verdict, reason)
        self.folder.store(msgspec.structs.replace(attempt, verdict=verdict, reason=reason, evidence=evidence))

    async def _undo(self, attempt: Attempt, live: Live | None) -> None:
        """Take an attempt away; every part is tried, and none of it can keep the old version from serving."""
        with contextlib.suppress(WaybillError, OSError):
            if attempt.switching and live:
                await self._commands("start", live.placed, None)
                await self._commands("switch", live.placed, None)
        if attempt.placed and attempt.started:
            placed = self._placed(attempt)
            with contextlib.suppress(WaybillError, OSError):
                await self._commands("stop", placed, live.placed if live else None)
            if attempt.verdict == "failed":
                with contextlib.suppress(WaybillError, OSError):
                    for name in await self._functions(placed, "failed", once=True):
                        await self._function(placed, name)
        self._opened.pop(attempt.release, None)
        placing.secrets_file(self._home, self.folder, attempt.release).unlink(missing_ok=True)
        if not (live and live.placed.release.id == attempt.release):
            await asyncio.to_thread(placing.delete, self.folder.releases / attempt.release)
        self.folder.store(msgspec.structs.replace(attempt, cleared=True, placed=None, again=None))
        self._note(f"{attempt.release} {attempt.verdict}: {attempt.reason}")

    async def _erase(self, attempt: Attempt | None, live: Live | None) -> None:
        placed = [live.placed, *live.retiring] if live else []
        if attempt and attempt.placed and attempt.started:
            placed.append(attempt.placed)
        if self._retiring:
            self._retiring.cancel()
            await asyncio.gather(self._retiring, return_exceptions=True)
        for one in placed:
            await self._commands("stop", one, None)
            placing.secrets_file(self._home, self.folder, one.release.id).unlink(missing_ok=True)
        self._note(f"removed by {self.folder.told().removed}")
        self.folder.current.unlink(missing_ok=True)
        await asyncio.to_thread(placing.delete, self.folder.releases)
        for name in ("live.json", "attempt.json"):
            (self.folder.path / name).unlink(missing_ok=True)

    def _retire(self) -> None:
        """Drain and stop what no longer serves, without holding anything up."""
        if not self.folder.told().removed and (self._retiring is None or self._retiring.done()):
            self._retiring = asyncio.create_task(self._stop_retired())

    async def _stop_retired(self) -> None:
        while (live := self.folder.live()) and live.retiring:
            old = live.retiring[0]
            try:
                await self._commands("stop", old, live.placed)
            except (WaybillError, OSError) as error:
                log.warning("%s: %s did not stop: %s", self.folder.key, old.release.id, error)
                await asyncio.sleep(RETRY)
                continue
            live = self.folder.live()
            if live:
                left = tuple(one for one in live.retiring if one.release.id != old.release.id)
                self.folder.store(msgspec.structs.replace(live, retiring=left))
            placing.secrets_file(self._home, self.folder, old.release.id).unlink(missing_ok=True)
        await self._prune()

    async def _prune(self) -> None:
        live, attempt = self.folder.live(), self.folder.attempt()
        if live is None:
            return
        keep = {one.release.id for one in (live.placed, live.previous, *live.retiring) if one}
        if rules.unfinished(attempt, live):
            return  # it may be laying out just now; what serves next prunes
        await asyncio.to_thread(placing.prune, self.folder, keep)
        used = {one for folder in self._home.services() for one in _commits(folder)}
        with contextlib.suppress(WaybillError):
            await self._placer.store(live.placed.manifest.repository).prune(used)

    def _roll_back(self, wish: Rollback) -> None:
        """Make the previous good release the one to bring up, as a person on this host asked."""
        told, attempt, live = self.folder.told(), self.folder.attempt(), self.folder.live()
        if attempt and rules.unfinished(attempt, live):
            if not attempt.verdict:
                reason = "a person on this host asked to go back."
                self.folder.store(msgspec.structs.replace(attempt, verdict="abandoned", reason=reason))
            return  # asked again once it is undone
        (self.folder.path / "rollback.json").unlink(missing_ok=True)
        if live and live.previous:
            old = live.previous
            attempt = Attempt(
                sequence=old.manifest.sequence,
                rollout="",
                release=placing.new_release(old.manifest),
                at=wish.at,
                rollback=told.highest,
                again=old,
                by=wish.by,
            )
            self.folder.store(attempt)

    async def _open(self, placed: Placed) -> dict[str, str]:
        """The decrypted variables of a release, also in its file in memory."""
        if not placed.release.secrets:
            return {}
        if placed.release.id not in self._opened:
            opened = self._already_open(placed)
            if opened is None:
                opened = await variables.unlock(self._home, self._placer.store(placed.manifest.repository), placed)
            if placed.release.port is not None and "PORT" in opened.values:
                raise InvalidInputError(
                    f"{placed.variables} sets PORT, by which the host tells the service where to listen.",
                    "Take PORT out of the locked variables; `run.port` is what users connect to.",
                )
            variables.put(Path(placed.release.secrets), opened.file)
            self._opened = {placed.release.id: opened.values}
        return self._opened[placed.release.id]

    def _already_open(self, placed: Placed) -> variables.Opened | None:
        """The variables, where what serves now was opened from the very same locked file with the same key."""
        live = self.folder.live()
        if live is None or not live.placed.release.secrets or live.placed.release.id == placed.release.id:
            return None
        old = live.placed
        if (old.manifest.locked, old.sealed, old.variables) != (
            placed.manifest.locked,
            placed.sealed,
            placed.variables,
        ):
            return None
        return variables.kept(Path(live.placed.release.secrets))

    async def _functions(self, placed: Placed, when: Literal["before", "after", "failed"], *, once: bool) -> list[str]:
        store = self._placer.store(placed.manifest.repository)
        service = await placing.read_service(store, placed.manifest)
        names = getattr(service.environments[placed.manifest.environment], when)
        return [name for name in names if once or not service.functions[name].once]

    async def _function(self, placed: Placed, name: str) -> None:
        store = self._placer.store(placed.manifest.repository)
        function = (await placing.read_service(store, placed.manifest)).functions[name]
        first, *rest = function.command
        if "/" in first:
            first = os.path.join(placed.release.root, first)  # noqa: PTH118 - keeps an absolute one
        command = model.Run(
            argv=(first, *rest),
            cwd=placed.release.root,
            user=placed.release.user,
            environment=placed.release.environment | await self._open(placed),
            timeout=function.timeout,
        )
        result = await self._perform(command)
        if not result.ok:
            raise StepFailedError(f"the function {name} failed: {result.reason}", result.output)

    async def _commands(self, step: model.Step, placed: Placed, previous: Placed | None) -> None:
        driver = placing.drivers()[placed.driver]
        release = options_of(placed, driver.Options).release
        before = options_of(previous, placing.drivers()[previous.driver].Options).release if previous else None
        for command in driver.plan(step, release, before):
            result = await self._perform(command)
            if not result.ok:
                raise StepFailedError(result.reason, result.output)

    def _placed(self, attempt: Attempt) -> Placed:
        if attempt.placed is None:
            raise NotFoundError(f"attempt {attempt.release} of {self.folder.key} was never laid out.")
        return attempt.placed

    def standing(self, state: State) -> Report:
        """What the server should know of this service now."""
        told, attempt, live = self.folder.told(), self.folder.attempt(), self.folder.live()
        sequence, reason, evidence = told.highest, self.trouble, ""
        if told.refusal:
            sequence, state, reason = told.refusal.sequence, "refused", told.refusal.reason
        elif attempt and attempt.verdict and state == attempt.verdict:
            reason, evidence = attempt.reason, attempt.evidence
        elif attempt and attempt.rollback and state == "abandoned":
            reason = f"{attempt.by} went back to sequence {attempt.sequence} on this host."
        elif state == "held":
            reason = "a person on this host said hold; `waybill agent release` lets it go on."
        since = live.took if live and state == "live" else 0
        return Report(
            service=self.folder.service,
            environment=self.folder.environment,
            sequence=sequence,
            state=state,
            at=clock.stamp(),
            reason=reason,
            evidence=evidence,
            live_sequence=live.placed.manifest.sequence if live else 0,
            live_commit=live.placed.manifest.commit if live else "",
            health=self._health if live else "unknown",
            highest=told.highest,
            took=since or (_since(told.at) if told.at else 0),
        )

    def last(self) -> Report | None:
        """What the server was told last."""
        return self._last

    async def check_health(self) -> None:
        """Ask what serves now whether it is well."""
        live, attempt = self.folder.live(), self.folder.attempt()
        if live is None or live.placed.release.health is None or self.folder.told().removed:
            return
        if rules.unfinished(attempt, live):
            return
        health = msgspec.structs.replace(live.placed.release.health, within=live.placed.release.health.timeout)
        placed = msgspec.structs.replace(
            live.placed, release=msgspec.structs.replace(live.placed.release, health=health)
        )
        try:
            await self._commands("probe", placed, None)
            found: Health = "healthy"
        except WaybillError:
            found = "failing"
        if found != self._health and self._last:
            self._health = found
            self._tell(self._last.state)

    def _tell(self, state: State) -> None:
        report = self.standing(state)
        if self._last is None or _news(report) != _news(self._last):
            self._last = report
            self._report(report)

    def _note(self, text: str) -> None:
        with contextlib.suppress(OSError), (self.folder.path / "revisions.log").open("a") as file:
            file.write(f"{clock.stamp()} {text}\n")


def _news(report: Report) -> Report:
    return msgspec.structs.replace(report, at="", took=0)


def _since(at: str) -> int:
    return max(0, round((clock.now() - clock.parse(at)).total_seconds() * 1000))


def _whole(step: rules.Step) -> bool:
    """Whether a step must not be cut short."""
    return isinstance(step, (rules.Undo, rules.Erase)) or step == rules.Continue("switching")


def _commits(folder: Folder) -> set[str]:
    live, attempt, wanted = folder.live(), folder.attempt(), folder.told().wanted()
    placed = [live.placed, live.previous, *live.retiring] if live else []
    if attempt:
        placed += [attempt.placed, attempt.again]
    return {one.manifest.commit for one in placed if one} | ({wanted.commit} if wanted else set())
