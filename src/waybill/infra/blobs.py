"""Builds, kept by their SHA-256: written once, verified while they arrive, visible only when whole."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterable
from pathlib import Path

from waybill.core.errors import InvalidInputError, TooLargeError
from waybill.core.ids import new_id

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Blobs:
    """A folder of blobs.

    Args:
        folder: The data folder; blobs stand in ``blobs/<hex digest>``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "blobs"
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob(".incoming-*"):
            left.unlink(missing_ok=True)

    def path(self, digest: str) -> Path:
        """Where the blob of this digest stands, whether it is there or not."""
        if not _DIGEST.fullmatch(digest):
            raise InvalidInputError(f"{digest!r} is no digest; sha256: and 64 hex digits are.")
        return self._folder / digest.removeprefix("sha256:")

    async def put(self, chunks: AsyncIterable[bytes], limit: int, expected: str | None = None) -> tuple[str, int]:
        """Keep what arrives; returns (digest, bytes).

        Raises:
            TooLargeError: Over ``limit`` bytes.
            InvalidInputError: It has not the ``expected`` digest.
        """
        temporary = self._folder / f".incoming-{new_id()}"
        state, size = hashlib.sha256(), 0
        try:
            with temporary.open("xb") as file:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > limit:
                        raise TooLargeError(f"the build is over {limit} bytes.", "Raise `limit` under build.")
                    state.update(chunk)
                    await asyncio.to_thread(file.write, chunk)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            digest = f"sha256:{state.hexdigest()}"
            if expected is not None and digest != expected:
                raise InvalidInputError(f"what arrived has the digest {digest}, {expected} was announced.")
            temporary.replace(self.path(digest))
            descriptor = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        finally:
            temporary.unlink(missing_ok=True)
        return digest, size
