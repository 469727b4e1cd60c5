"""The server's settings: ``server.toml`` in the data folder, then WAYBILL_* variables, then options of ``serve``."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import msgspec

from waybill.core.errors import InvalidInputError


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator may set.

    Attributes:
        data: Folder of everything that the server keeps.
        database: ``sqlite`` (in the data folder) or a ``postgresql://`` address.
        listen: Address of API, pages and webhooks.
        port: Port of API, pages and webhooks; 0 takes a free one.
        agents_listen: Address for agents.
        agents_port: Port for agents, mutual TLS; 0 takes a free one.
        public_url: How browsers, forges and the command line reach ``port``; empty derives it from listen.
        agents_url: How agents reach ``agents_port``; empty derives it from agents_listen.
        tls_certificate: PEM file for the public port; empty serves plain HTTP, for a proxy or loopback.
        tls_key: PEM file.
        sweep: Seconds between comparisons of branch heads with what was seen.
        log_json: Logs as JSON lines.
    """

    data: str
    database: str = "sqlite"
    listen: str = "127.0.0.1"
    port: int = 8470
    agents_listen: str = "127.0.0.1"
    agents_port: int = 8471
    public_url: str = ""
    agents_url: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    sweep: float = 60.0
    log_json: bool = False

    @property
    def folder(self) -> Path:
        """The data folder."""
        return Path(self.data)

    @property
    def database_url(self) -> str:
        """SQLAlchemy's address of the database."""
        if self.database == "sqlite":
            return f"sqlite:///{self.folder.absolute() / 'waybill.sqlite'}"
        return self.database


def load(data: Path, overrides: dict[str, object] | None = None) -> Settings:
    """Read ``server.toml`` of a data folder, WAYBILL_* variables and explicit overrides, the later the stronger.

    Raises:
        InvalidInputError: The file is no TOML, or a setting is unknown or of the wrong type.
    """
    file = data / "server.toml"
    values: dict[str, object] = {}
    if file.exists():
        try:
            values = tomllib.loads(file.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"{file} is no TOML: {error}") from error
    for name in Settings.__struct_fields__:
        text = os.environ.get(f"WAYBILL_{name.upper()}")
        if text is not None and name != "data":
            values[name] = text
    values |= {name: value for name, value in (overrides or {}).items() if value is not None}
    values["data"] = str(data)
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInputError(
            f"a setting of {file} or a WAYBILL_* variable is wrong: {error}",
            f"Settings are: {', '.join(Settings.__struct_fields__)}.",
        ) from error
