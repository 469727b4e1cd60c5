"""Private keys and secrets of the server: files ``keys/<purpose>-<id>`` of mode 0600, never rows of the database."""

from __future__ import annotations

import os
import re
from pathlib import Path

from waybill.core.errors import InvalidInputError

_NAME = re.compile(r"[a-z]+-[A-Za-z0-9._-]{1,120}")


class Keys:
    """The folder of keys.

    Args:
        folder: The data folder; ``keys`` is made in it with mode 0700.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "keys"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, name: str) -> Path:
        """Where the key of this name (``<purpose>-<id>``) stands."""
        if not _NAME.fullmatch(name) or ".." in name:
            raise InvalidInputError(f"{name!r} is no name of a key.")
        return self._folder / name

    def get(self, name: str) -> bytes | None:
        """The key, or None."""
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, name: str, value: bytes) -> None:
        """Keep a key whole or not at all."""
        target = self.path(name)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(value)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)

    def remove(self, name: str) -> None:
        """Delete a key; nothing happens when it is not there."""
        self.path(name).unlink(missing_ok=True)
