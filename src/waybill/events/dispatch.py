"""From rows of work to effects: the worker, the table of handlers, and the one interpreter of actions.

``@on(Kind)`` makes a pure function from an event to actions a handler; it is named after its module and itself. A
``handler(name)`` is an async function that looks at a state and moves it one step: level-triggered, so that whoever
leases it next continues it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from waybill.core.errors import WaybillError
from waybill.core.ids import new_id
from waybill.events import outbox
from waybill.events.model import Action, Again, Event, EventBody
from waybill.events.outbox import Work
from waybill.infra.db import Connection, Database
from waybill.infra.logs import log

Handler = Callable[[Work], Awaitable[Again | None]]
Reaction = Callable[[Any], Iterable[Action]]
A = TypeVar("A", bound=Action)

reactions: dict[str, Reaction] = {}


def on(kind: type[EventBody]) -> Callable[[Reaction], Reaction]:
    """Mark a pure function from ``Event`` to actions as a reaction to events of this kind."""

    def mark(function: Reaction) -> Reaction:
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        if reactions.setdefault(name, function) is not function:
            raise TypeError(f"two reactions are called {name}")
        outbox.handlers_of.setdefault(kind.__name__, []).append(name)
        return function

    return mark


class Dispatcher:
    """Leases rows of work and runs their handlers, several at once.

    Args:
        db: Where the outbox is.
        width: Rows that may be worked on at the same time.
    """

    def __init__(self, db: Database, width: int = 64) -> None:
        self._db = db
        self._width = width
        self._handlers: dict[str, Handler] = {}
        self._performers: dict[type[Action], Callable[[Any, Event, Work], Awaitable[None]]] = {}
        self._timers: list[tuple[str, float]] = []
        self._running: dict[int, tuple[Work, asyncio.Task[None]]] = {}
        self._bell = asyncio.Event()
        self._stopping = False
        self._done: list[tuple[Work, float | None]] = []
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{new_id()[-6:]}"

    def performs(self, action: type[A], performer: Callable[[A, Event, Work], Awaitable[None]]) -> None:
        """Have ``performer`` carry out actions of this type. It looks before it acts: steps run at least once."""
        if action in self._performers:
            raise TypeError(f"two performers for {action.__name__}")
        self._performers[action] = performer

    def handles(self, name: str, handler: Handler, every: float | None = None) -> None:
        """Have ``handler`` work on rows of this name; with ``every``, also on a timer of that many seconds."""
        if name in self._handlers:
            raise TypeError(f"two handlers are called {name}")
        self._handlers[name] = handler
        if every is not None:
            self._timers.append((name, every))

    async def run(self) -> None:
        """Work until ``stop``."""
        self._bell.set()
        self._db.listen(outbox.TOPIC, self._bell.set)
        timers = list(self._timers)

        def plan(connection: Connection) -> None:
            outbox.orphan(connection, [owner for owner in outbox.owners(connection) if self._dead(owner)])
            for name, every in timers:
                outbox.schedule(connection, name, "timer", min(every, 1.0))

        await self._db.write(plan)
        renewing = asyncio.create_task(self._renew_loop())
        try:
            while not self._stopping:
                self._bell.clear()
                wait = await self._round()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._bell.wait()
        finally:
            if self._running:
                await asyncio.wait([task for _, task in self._running.values()], timeout=10)
            done = list(self._done)
            over = {work.id for work, _ in done}
            left = [work for work, _ in self._running.values() if work.id not in over]
            for _, task in list(self._running.values()):
                task.cancel()
            renewing.cancel()
            if done or left:
                await self._db.write(functools.partial(_let_go, done=done, left=left))

    def stop(self) -> None:
        """Lease nothing more; ``run`` returns once what is under way has ended (10 s at most)."""
        self._stopping = True
        self._bell.set()

    def _dead(self, owner: str) -> bool:
        """Whether a holder of leases was a process of this machine that is no more, so nobody waits for its leases.

        A mistake would do no harm: a row's token rises with each lease, and only the newest holder may finish it.
        """
        machine, _, rest = owner.rpartition(":")[0].rpartition(":")
        if machine != socket.gethostname() or owner == self.owner:
            return False
        return rest == str(os.getpid()) or not os.path.exists(f"/proc/{rest}")  # noqa: PTH110 - a plain look

    async def _round(self) -> float:
        """Finish what is done and lease what is due, with the events it is about, all in one write."""
        done, self._done = self._done, []
        room = self._width - len(self._running) + len(done)
        if room <= 0:
            return 1.0

        def turn(connection: Connection) -> tuple[list[Work], dict[str, Event], float | None]:
            if done:
                outbox.finish_all(connection, done)
            works = outbox.lease(connection, self.owner, room)
            about = [work.key for work in works if work.handler not in self._handlers]
            return works, outbox.events_of(connection, about), outbox.next_due(connection)

        works, events, due = await self._db.write(turn)
        for work, _ in done:
            self._running.pop(work.id, None)
        for work in works:
            task = asyncio.create_task(self._work(work, events.get(work.key)), name=f"{work.handler} {work.key}")
            self._running[work.id] = (work, task)
        if len(works) == room:
            return 1.0
        return 5.0 if due is None else max(0.005, min(due, 5.0))

    async def _work(self, work: Work, event: Event | None) -> None:
        done = False
        try:
            again = await self._handle(work, event)
            self._done.append((work, None if again is None else again.after))
            done = True  # and held until the next round has written so
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - every failure is retried and then shown to a person
            reason = str(error) if isinstance(error, WaybillError) else f"{type(error).__name__}: {error}"
            aside = await self._db.write(lambda connection: outbox.fail(connection, work, reason))
            say = log.error if aside else log.warning
            say("work failed", handler=work.handler, key=work.key, attempt=work.attempts, reason=reason, aside=aside)
        finally:
            if not done:
                self._running.pop(work.id, None)
            self._bell.set()

    async def _handle(self, work: Work, event: Event | None) -> Again | None:
        handler = self._handlers.get(work.handler)
        if handler is not None:
            result = await handler(work)
            if result is None and work.key == "timer":
                return Again(next(every for name, every in self._timers if name == work.handler))
            return result
        reaction = reactions.get(work.handler)
        if reaction is None:
            raise WaybillError(f"no handler is called {work.handler}.", "An older or newer version left this work.")
        if event is not None:
            for action in reaction(event):
                await self._performers[type(action)](action, event, work)
        return None

    async def _renew_loop(self) -> None:
        while True:
            await asyncio.sleep(outbox.LEASE / 3)
            held = [work for work, _ in self._running.values()]
            if not held:
                continue
            kept = await self._db.write(functools.partial(_renew, works=held))
            for work in held:
                entry = self._running.get(work.id)
                if work.id not in kept and entry is not None and entry[0] is work:
                    log.warning("lease lost", handler=work.handler, key=work.key)
                    entry[1].cancel()


def _renew(connection: Connection, works: list[Work]) -> set[int]:
    return outbox.renew(connection, works)


def _let_go(connection: Connection, done: list[tuple[Work, float | None]], left: list[Work]) -> None:
    outbox.finish_all(connection, done)
    outbox.release(connection, left)
