"""The server that the command line talks to, and the token that it shows.

``waybill login`` keeps both in ``$XDG_CONFIG_HOME/waybill/cli.toml`` (0600); WAYBILL_SERVER and WAYBILL_TOKEN outrank
the file, so that machines need none.
"""

from __future__ import annotations

import json
import os
import tomllib
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec

from waybill.core.errors import InvalidInputError, UnauthenticatedError, UnavailableError
from waybill.infra.http import Api

T = TypeVar("T")


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """A server and who one is there.

    Attributes:
        server: Its public address.
        token: Text of a token; empty when there is none.
        ca: Path of a PEM file to trust instead of the system's authorities; empty for those.
    """

    server: str
    token: str = ""
    ca: str = ""


def file() -> Path:
    """Where the log-in is kept."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "waybill" / "cli.toml"


def load() -> Login:
    """The server to talk to.

    Raises:
        UnauthenticatedError: Nobody has logged in.
        InvalidInputError: The file is damaged.
    """
    kept: dict[str, Any] = {}
    path = file()
    try:
        kept = tomllib.loads(path.read_text())
    except FileNotFoundError:
        pass
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is no TOML: {error}", "Write it again: waybill login URL.") from error
    chosen = {name: os.environ.get(f"WAYBILL_{name.upper()}") or kept.get(name, "") for name in ("token", "ca")}
    server = os.environ.get("WAYBILL_SERVER") or kept.get("server", "")
    if server != kept.get("server") and not os.environ.get("WAYBILL_TOKEN"):
        chosen["token"] = ""  # the kept token is for the kept server and for nobody else
    if not server:
        raise UnauthenticatedError(
            "no server is known here.", "waybill login URL, or set WAYBILL_SERVER and WAYBILL_TOKEN."
        )
    try:
        return msgspec.convert({"server": server.rstrip("/"), **chosen}, Login)
    except msgspec.ValidationError as error:
        raise InvalidInputError(f"{path} is wrong: {error}", "Write it again: waybill login URL.") from error


def save(login: Login) -> Path:
    """Keep a log-in for this person alone; returns where."""
    path = file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in msgspec.structs.asdict(login).items() if value)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        opened.write(text)
    temporary.replace(path)
    return path


class Client:
    """The API of one server, in the types of ``wire.api``.

    Args:
        login: Which one, and as whom.
        timeout: Seconds for connecting and for each single read or write.
    """

    def __init__(self, login: Login | None = None, timeout: float = 30.0) -> None:
        self.login = login or load()
        self._api = Api(self.login.server, self.login.token, self.login.ca or None, timeout)
        weakref.finalize(self, self._api.close)

    @overload
    def call(self, method: str, path: str, kind: type[T], body: Any = None, **params: Any) -> T: ...
    @overload
    def call(self, method: str, path: str, kind: None = None, body: Any = None, **params: Any) -> None: ...
    def call(self, method: str, path: str, kind: Any = None, body: Any = None, **params: Any) -> Any:
        """Ask something; ``params`` that are None are left out.

        Raises:
            WaybillError: The server's refusal, in its own words, or that it cannot be reached.
        """
        answer = self._api.request(method, path, body, _given(params))
        if kind is None:
            return None
        try:
            return msgspec.convert(answer, kind)
        except msgspec.ValidationError as error:
            raise UnavailableError(
                f"{self.login.server} answered in a form that is not understood here: {error}",
                "Do command line and server have the same version?",
            ) from error

    def follow(self, path: str, kind: type[T], **params: Any) -> Iterator[T]:
        """The server-sent events of an address, as they come."""
        with self._api.lines(path, _given(params)) as lines:
            for line in lines:
                if line.startswith("data: "):
                    yield msgspec.json.decode(line[6:], type=kind)


def _given(params: dict[str, Any]) -> dict[str, str | int] | None:
    return {name: value for name, value in params.items() if value is not None} or None
