"""``races.toml``: which forge a project's races are filed at, and what happens there.

The same file serves a machine that files by itself (``/etc/waybill/races.toml``) and the server (``races.toml`` in its
data folder). The token is in a file of its own that nobody else may read.
"""

from __future__ import annotations

import socket
import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from waybill.core.errors import ForbiddenError, InvalidInputError, NotFoundError
from waybill.core.plugins import Plugins
from waybill.races.ports import Forge, IssueTracker, Place
from waybill.races.rules import Policy

SYSTEM = Path("/etc/waybill/races.toml")


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be set.

    Attributes:
        forge: Name of an adapter; empty files nothing.
        url: Of the forge; for GitHub that of its API.
        project: Full name with its groups.
        token_file: Holds the token; relative to this file.
        ca: PEM file to trust instead of the system's authorities.
        label: Of every issue about a race.
        regressed: ``reopen`` or ``new``.
        regressed_label: Added to a race that came back.
        cap: New issues of one run.
        host: This machine's name in issues; empty takes its own.
    """

    forge: str = ""
    url: str = ""
    project: str = ""
    token_file: str = ""
    ca: str = ""
    label: str = "Race conditions"
    regressed: Literal["reopen", "new"] = "reopen"
    regressed_label: str = "Regressed"
    cap: int = 20
    host: str = ""

    @property
    def policy(self) -> Policy:
        """What filing follows."""
        return Policy(label=self.label, regressed=self.regressed, regressed_label=self.regressed_label, cap=self.cap)

    @property
    def name(self) -> str:
        """This machine in issues."""
        return self.host or socket.gethostname()


def load(path: Path | None) -> Config:
    """Read the settings; without a path, the system's file if it is there.

    Raises:
        InvalidInputError: It is no TOML, or a setting is unknown or of the wrong type.
        NotFoundError: The path that was given does not exist.
    """
    file = path or SYSTEM
    try:
        values = tomllib.loads(file.read_text())
    except FileNotFoundError:
        if path is None:
            return Config()
        raise NotFoundError(f"there is no file {path}.", "It is described in the guide about data races.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{file} is no TOML: {error}") from error
    if values.get("token_file"):
        values["token_file"] = str(file.parent / str(values["token_file"]))
    try:
        return msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        raise InvalidInputError(f"{file}: {error}", f"Settings are: {', '.join(Config.__struct_fields__)}.") from error


def tracker(config: Config) -> IssueTracker:
    """The project's issues.

    Raises:
        InvalidInputError: A setting is missing.
        ForbiddenError: Others may read the token.
        NotFoundError: No such adapter, or no file with a token.
    """
    for name in ("url", "project", "token_file"):
        if not getattr(config, name):
            raise InvalidInputError(f"`{name}` is not set for {config.forge}.", "Set it in races.toml.")
    known: Plugins[Forge] = Plugins("waybill.races.adapters", "TRACKER")
    return known[config.forge](
        Place(url=config.url, project=config.project, token=_token(Path(config.token_file)), ca=config.ca)
    )


def _token(file: Path) -> str:
    try:
        mode = file.stat().st_mode
        text = file.read_text().strip()
    except OSError as error:
        raise NotFoundError(f"the token in {file} cannot be read: {error.strerror}.") from error
    if mode & 0o077:
        raise ForbiddenError(f"others may read the token in {file}.", f"chmod 600 {file}")
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise InvalidInputError(f"{file} holds no token.", "One line, nothing else.")
    return text
