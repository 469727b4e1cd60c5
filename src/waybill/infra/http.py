"""The HTTP client, for the agent and the command line; the one file that imports it.

Whatever goes wrong leaves here as a ``WaybillError``: no answer is ``UnavailableError``, an answer of 400 or more
becomes the error of its status, with the sentence of its problem document (RFC 9457). Redirects are not followed,
and proxies and authorities come from the arguments, never from the surroundings.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2
import msgspec

from waybill.core.errors import (
    ConflictError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    WaybillError,
)

PROBLEM_LIMIT = 64 * 1024
LINE_LIMIT = 1024 * 1024
KINDS: dict[int, type[WaybillError]] = {
    kind.status: kind
    for kind in (
        InvalidInputError,
        UnauthenticatedError,
        ForbiddenError,
        NotFoundError,
        ConflictError,
        TooLargeError,
        UnavailableError,
    )
}


class _Problem(msgspec.Struct, frozen=True):
    title: str = ""
    detail: str = ""
    hint: str = ""
    message: Any = None
    error: Any = None


def mutual_tls(certificate: str, key: str, ca: str) -> ssl.SSLContext:
    """A context that shows this certificate and trusts this one authority; all three are paths of PEM files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(ca)
    context.load_cert_chain(certificate, key)
    return context


class AsyncApi:
    """One server, spoken to from an event loop.

    Args:
        url: Its address, ``https://host:port``.
        context: Whom to trust and what to show.
        timeout: Seconds for connecting and for each single read or write.
    """

    def __init__(self, url: str, context: ssl.SSLContext, timeout: float = 30.0) -> None:
        self.url = url
        self._client = httpx2.AsyncClient(
            base_url=url,
            verify=context,
            timeout=timeout,
            trust_env=False,
            limits=httpx2.Limits(max_connections=16, max_keepalive_connections=2, keepalive_expiry=30),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def post(self, path: str, body: Any) -> bytes:
        """Send a value as JSON; the answer's bytes."""
        with _translated(self.url):
            response = await self._client.post(
                path, content=msgspec.json.encode(body), headers={"content-type": "application/json"}
            )
            _check(response.status_code, response.content, self.url)
            return response.content

    async def put(self, path: str, content: AsyncIterator[bytes], length: int, digest: str) -> bytes:
        """Send a body of a known length and digest as a stream; the answer's bytes."""
        headers = {
            "content-type": "application/octet-stream",
            "content-length": str(length),
            "waybill-digest": digest,
        }
        with _translated(self.url):
            response = await self._client.put(path, content=content, headers=headers)
            _check(response.status_code, response.content, self.url)
            return response.content

    @asynccontextmanager
    async def chunks(
        self, path: str, params: dict[str, str | int] | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The body of an answer, chunk by chunk as it comes.

        The read time-out is the caller's business here: a stream may be silent for long.
        """
        timeout = httpx2.Timeout(30.0, read=None)
        with _translated(self.url):
            async with self._client.stream("GET", path, params=params, timeout=timeout) as response:
                if response.status_code >= 400:
                    _check(response.status_code, await response.aread(), self.url)
                yield response.aiter_raw()

    @asynccontextmanager
    async def lines(self, path: str, params: dict[str, str | int] | None = None) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of an answer without their ends; a line over 1 MiB is refused."""
        async with self.chunks(path, params) as chunks:
            yield _lines(chunks)


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line
        if len(rest) > LINE_LIMIT:
            raise TooLargeError("the server sent a line of more than 1 MiB.")


class Api:
    """One server, spoken to from the command line; used as ``with Api(url) as api``.

    Args:
        url: Its public address.
        token: Bearer token, when the person has one.
        ca: Path of a PEM file to trust instead of the system's authorities.
        timeout: Seconds for connecting and for each single read or write.
    """

    def __init__(self, url: str, token: str = "", ca: str | None = None, timeout: float = 30.0) -> None:
        self.url = url
        self._client = httpx2.Client(
            base_url=url,
            verify=ssl.create_default_context(cafile=ca) if url.startswith("https:") else False,
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=timeout,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def request(self, method: str, path: str, body: Any = None, params: dict[str, str | int] | None = None) -> Any:
        """The decoded JSON of the answer; None when it has no body."""
        content = None if body is None else msgspec.json.encode(body)
        headers = {"accept": "application/json"} | ({"content-type": "application/json"} if content else {})
        with _translated(self.url):
            response = self._client.request(method, path, content=content, headers=headers, params=params)
            _check(response.status_code, response.content, self.url)
            try:
                return msgspec.json.decode(response.content) if response.content else None
            except msgspec.DecodeError as error:
                raise UnavailableError(f"{self.url} did not answer in JSON.", "Is this a Waybill server?") from error

    @contextmanager
    def lines(self, path: str, params: dict[str, str | int] | None = None) -> Iterator[Iterator[str]]:
        """The lines of an answer, as they come, for as long as they come."""
        with (
            _translated(self.url),
            self._client.stream("GET", path, params=params, timeout=httpx2.Timeout(30.0, read=None)) as response,
        ):
            if response.status_code >= 400:
                _check(response.status_code, response.read(), self.url)
            yield response.iter_lines()


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What another's API answered.

    Attributes:
        status: Below 400, or 404 where that was asked for.
        headers: Names in lower case.
        body: Decoded JSON; None when there is none.
    """

    status: int
    headers: dict[str, str]
    body: Any


class Rest:
    """A JSON API of somebody else's, a forge for example, spoken to within its rate limits.

    A refusal that names a time is waited for and the request sent again, whatever it does: it had no effect. Everything
    else is tried once, since nobody knows what a lost answer did; who asks looks before asking again.

    Args:
        url: Where the API begins.
        headers: Of every request, with whatever proves who asks.
        ca: Path of a PEM file to trust instead of the system's authorities.
        timeout: Seconds for connecting and for each single read or write.
        patience: Seconds that may be spent waiting for limits, over the life of this object.
    """

    def __init__(
        self, url: str, headers: dict[str, str], ca: str | None = None, timeout: float = 30.0, patience: float = 600.0
    ) -> None:
        self.url = url.rstrip("/")
        self._patience = patience
        self._client = httpx2.Client(
            verify=ssl.create_default_context(cafile=ca) if url.startswith("https:") else False,
            headers={"accept": "application/json", "user-agent": "waybill"} | headers,
            timeout=timeout,
            trust_env=False,
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        params: dict[str, str | int] | None = None,
        *,
        missing: bool = False,
    ) -> Answer:
        """Ask something.

        Args:
            method: Of HTTP.
            path: After the API's address, or a whole address of the same origin.
            body: Sent as JSON.
            params: Of the query.
            missing: Whether 404 is an answer.

        Raises:
            WaybillError: The refusal, or that it cannot be reached.
        """
        address = path if path.startswith(("http://", "https://")) else self.url + path
        if _origin(address) != _origin(self.url):
            raise UnavailableError(f"{self.url} names an address of another server.")
        content = None if body is None else msgspec.json.encode(body)
        headers = {"content-type": "application/json"} if content else {}
        while True:
            with _translated(self.url):
                response = self._client.request(method, address, content=content, headers=headers, params=params)
                pause = _pause(response.status_code, response.headers)
                if pause is None:
                    break
            if pause > self._patience:
                raise UnavailableError(f"{self.url} asks to wait {pause:.0f} s, which is too long.", "Try again later.")
            self._patience -= pause
            time.sleep(pause)
        if not (missing and response.status_code == 404):
            _check(response.status_code, response.content, self.url)
        try:
            told = msgspec.json.decode(response.content) if response.content else None
        except msgspec.DecodeError as error:
            raise UnavailableError(f"{self.url} did not answer in JSON.", "Is this the address of its API?") from error
        return Answer(status=response.status_code, headers=dict(response.headers), body=told)

    def pages(self, path: str, params: dict[str, str | int], limit: int = 200) -> Iterator[Any]:
        """The items of a list, over all its pages (``Link`` with ``rel="next"``)."""
        given: dict[str, str | int] | None = params
        for _ in range(limit):
            answer = self.call("GET", path, params=given)
            if not isinstance(answer.body, list):
                raise UnavailableError(f"{self.url} did not answer with a list.", "Is this the address of its API?")
            yield from answer.body
            found = re.search(r'<([^<>]*)>\s*;[^,<]*rel="?next"?', answer.headers.get("link", ""))
            if found is None:
                return
            path, given = found[1], None
        raise UnavailableError(f"{self.url} has more than {limit} pages of one list.")


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _pause(status: int, headers: Any) -> float | None:
    """Seconds to wait before asking again; None when the answer is no plea to wait."""
    after, left = headers.get("retry-after"), headers.get("x-ratelimit-remaining")
    if status not in (403, 429, 503) or (status == 403 and after is None and left != "0"):
        return None
    if after is None and status == 503:
        return None
    with suppress(TypeError, ValueError):
        return max(0.0, float(after))
    with suppress(TypeError, ValueError):
        return max(1.0, float(headers.get("x-ratelimit-reset") or headers.get("ratelimit-reset")) - time.time())
    with suppress(TypeError, ValueError):
        return max(0.0, (parsedate_to_datetime(after) - datetime.now(UTC)).total_seconds())
    return 60.0


@contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except httpx2.TimeoutException as error:
        raise UnavailableError(f"{url} did not answer in time.") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, ssl.SSLError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, (ConnectionError, ssl.SSLError)):
            raise  # the disk, not the network
        raise UnavailableError(f"{url} cannot be reached: {error or type(error).__name__}.") from error


def _check(status: int, content: bytes, url: str) -> None:
    if status < 300:
        return
    if status < 400:
        raise UnavailableError(f"{url} answered with a redirect ({status}).", "Give the server's own address.")
    problem = _Problem()
    if len(content) <= PROBLEM_LIMIT:
        with suppress(msgspec.DecodeError):
            problem = msgspec.json.decode(content, type=_Problem)
    kind = KINDS.get(status, UnavailableError if status >= 500 or status == 429 else WaybillError)
    said = problem.detail or problem.title or _words(problem.message or problem.error)
    raise kind(said or f"{url} answered {status}.", problem.hint)


def _words(said: Any) -> str:
    """A forge's refusal, in one line."""
    return f"the forge says: {str(said)[:300]}" if said else ""
