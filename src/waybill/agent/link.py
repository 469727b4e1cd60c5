"""The connection to the server: one stream that tells what should be true, and reports that go back.

The agent connects out, over mutual TLS, trusting nothing but the authority of its enrolment. It waits a random time
before it tries again (full jitter), so that a server which restarts is not met by all hosts at once. A report is kept
until it is delivered; a newer one of the same service takes its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import IO
from urllib.parse import quote

import msgspec

from waybill.agent.state import Config, Home, Known, Standing, write
from waybill.core import clock
from waybill.core.errors import InvalidInputError, TooLargeError, UnavailableError, WaybillError
from waybill.infra.http import AsyncApi, mutual_tls
from waybill.wire.agent import BuildOrder, Facts, FromServer, Hello, LogLines, Report, Reports

log = logging.getLogger("waybill.agent")
FIRST_WAIT = 1.0
LONGEST_WAIT = 30.0
SETTLED = 10.0
SKEW = 60.0
BUILD_LIMIT = 4 * 1024**3


class Link:
    """The agent's side of the agents' port.

    Args:
        home: Where keys and the stream's place are.
        config: Which servers there are.
        hear: Takes a message, with the id of the server's past that said it, and stores it before it returns.
        reports: All that the host would say of itself, sent after every connect.
        facts: What the host says of itself.
        longest: Seconds that it waits at most before it connects again.
    """

    def __init__(
        self,
        home: Home,
        config: Config,
        hear: Callable[[FromServer, str], None],
        reports: Callable[[], list[Report]],
        facts: Callable[[], Facts],
        longest: float = LONGEST_WAIT,
    ) -> None:
        self._home = home
        self._config = config
        self._hear = hear
        self._all = reports
        self._facts = facts
        self._longest = longest
        self._known = home.known()
        self._waiting: dict[str, Report] = {}
        self._facts_due = False
        self._something = asyncio.Event()
        self._delivered = asyncio.Event()
        self._delivered.set()
        self._connected = asyncio.Event()
        self._api: AsyncApi | None = None
        self.skew = 0.0
        self.trouble = "not connected yet"

    async def run(self) -> None:
        """Keep the stream open, for ever; cancelled at the end."""
        context = mutual_tls(*(str(self._home.keys / name) for name in ("host.crt", "host.key", "ca.crt")))
        wait, turn = FIRST_WAIT, 0
        reporter = asyncio.create_task(self._report_for_ever())
        loop = asyncio.get_running_loop()
        try:
            while True:
                url = self._config.servers[turn % len(self._config.servers)]
                began, again = loop.time(), False
                api = AsyncApi(url, context)
                try:
                    again = await self._stream(api)
                    self._stands(f"{url} closed the connection.")
                except (WaybillError, TimeoutError) as error:
                    self._stands(_sentence(error, url))
                finally:
                    self._connected.clear()
                    self._api = None
                    await api.close()
                if again:
                    continue
                turn += 1
                wait = FIRST_WAIT if loop.time() - began > SETTLED else min(wait * 2, self._longest)
                pause = random.uniform(0, min(wait, self._longest))  # noqa: S311 - spreads load, guards nothing
                log.info("%s; trying again in %.1f s", self.trouble, pause)
                await asyncio.sleep(pause)
        finally:
            reporter.cancel()
            await asyncio.gather(reporter, return_exceptions=True)

    def report(self, report: Report) -> None:
        """Have a report delivered, sooner or later."""
        self._waiting[f"{report.service}/{report.environment}"] = report
        self._delivered.clear()
        self._something.set()

    async def flush(self, seconds: float) -> None:
        """Give waiting reports this long to be delivered."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._delivered.wait()

    async def pack(self, repository: str, commit: str, file: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The git pack of a commit, chunk by chunk."""
        return (await self._server()).chunks(f"/v1/commits/{quote(repository)}/{commit}.pack", {"path": file})

    async def build(self, digest: str, target: IO[bytes], limit: int = BUILD_LIMIT) -> None:
        """Write a packed build into a file, checking its digest as it comes.

        Raises:
            TooLargeError: It is larger than this host accepts.
            InvalidInputError: It is not what the digest names.
        """
        api = await self._server()
        checked, size = hashlib.sha256(), 0
        async with api.chunks(f"/v1/builds/{quote(digest)}") as chunks:
            async for chunk in chunks:
                size += len(chunk)
                if size > limit:
                    raise TooLargeError(f"the build {digest[:19]} is larger than {limit} bytes.")
                checked.update(chunk)
                target.write(chunk)
        if f"sha256:{checked.hexdigest()}" != digest:
            raise InvalidInputError(
                f"the build that came is not {digest[:19]}….",
                "It was damaged or exchanged on its way; nothing of it is used.",
            )

    async def upload(self, order: str, packed: Path) -> None:
        """Hand a finished build over."""
        size = packed.stat().st_size  # noqa: ASYNC240 - a local file's size does not block
        digest = await asyncio.to_thread(_digest, packed)
        await (await self._server()).put(f"/v1/builds/{quote(order)}", _chunks(packed), size, digest)

    async def build_failed(self, order: str, reason: str, output: str) -> None:
        """Say that a build failed, and how."""
        await (await self._server()).post(f"/v1/builds/{quote(order)}/failed", {"reason": reason, "output": output})

    async def logs(self, watcher: str, lines: LogLines) -> None:
        """Send log lines to whoever watches."""
        await (await self._server()).post(f"/v1/logs/{quote(watcher)}", lines)

    async def _server(self) -> AsyncApi:
        while self._api is None:
            await self._connected.wait()
        return self._api

    async def _stream(self, api: AsyncApi) -> bool:
        """Hear what one connection says; True when it has to be opened again at once, from the beginning."""
        async with api.lines("/v1/desired", {"since": self._known.revision}) as lines:
            hello = await _next(lines, 30.0)
            if not isinstance(hello, Hello):
                raise UnavailableError(f"{api.url} did not greet.")
            if self._changed(hello):
                return True
            self.skew = abs((clock.parse(hello.at) - clock.now()).total_seconds())
            if self.skew > SKEW:
                log.warning("this host's clock and the server's are %.0f s apart; set up NTP", self.skew)
            self._api = api
            self._stands("")
            self._connected.set()
            self._facts_due = True
            for report in self._all():
                self._waiting.setdefault(f"{report.service}/{report.environment}", report)
            self._something.set()
            log.info("connected to %s as %s", api.url, hello.host)
            while (message := await _next(lines, 3.0 * hello.heartbeat)) is not None:
                if not isinstance(message, (str, Hello)):
                    revision = getattr(message, "revision", 0)
                    if not (isinstance(message, BuildOrder) and revision <= self._known.revision):
                        self._hear(message, self._known.server)
                    if revision > self._known.revision:
                        self._know(Known(server=self._known.server, revision=revision))
        return False

    def _changed(self, hello: Hello) -> bool:
        """Whether the server lost its past, so that it has to be heard from the beginning."""
        known, _, times = self._known.server.partition("#")
        if known == hello.server and (hello.revision is None or hello.revision >= self._known.revision):
            return False
        first = not known
        if known == hello.server:
            log.warning("the server went back to revision %s of its database; all goes on serving", hello.revision)
            name = f"{known}#{int(times or 0) + 1}"
        else:
            name = hello.server
            if not first:
                log.warning("the server has another database than before; all goes on serving")
        again = self._known.revision > 0
        self._know(Known(server=name, revision=0))
        return again

    def _stands(self, trouble: str) -> None:
        """Keep how the connection stands where a person on this host finds it."""
        if trouble != self.trouble:
            with contextlib.suppress(OSError):
                write(self._home.root / "link.json", msgspec.json.encode(Standing(at=clock.stamp(), trouble=trouble)))
        self.trouble = trouble

    def _know(self, known: Known) -> None:
        self._home.remember(known)
        self._known = known

    async def _report_for_ever(self) -> None:
        while True:
            await self._something.wait()
            api = await self._server()
            self._something.clear()
            sent = dict(self._waiting)
            body = Reports(reports=list(sent.values()), facts=self._facts() if self._facts_due else None)
            if not body.reports and body.facts is None:
                continue
            try:
                await api.post("/v1/report", body)
            except WaybillError as error:
                log.info("report not delivered: %s", error.reason)
                self._something.set()
                await asyncio.sleep(random.uniform(0.1, 1.0))  # noqa: S311
                continue
            self._facts_due = False
            for key, report in sent.items():
                if self._waiting.get(key) is report:
                    del self._waiting[key]
            if not self._waiting:
                self._delivered.set()


def _sentence(error: Exception, url: str) -> str:
    """Why there is no connection, and what to do where that is certain."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return (
            f"{url} shows a certificate of another authority than the one that enrolled this host."
            " If the server was set up anew, make a token there and run: waybill agent enroll TOKEN --force"
        )
    return str(error) or f"{url} was silent for too long."


async def _next(lines: AsyncIterator[bytes], seconds: float) -> FromServer | str | None:
    """The next message; a text for a line that says nothing to this version; None at the end."""
    async with asyncio.timeout(seconds):
        try:
            line = await anext(lines)
        except StopAsyncIteration:
            return None
    if not line.strip():
        return ""
    try:
        message: FromServer = msgspec.json.decode(line, type=FromServer)
    except msgspec.DecodeError as error:
        log.warning("a message was skipped: %s", error)
        return ""
    return message


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 18):
            yield chunk
