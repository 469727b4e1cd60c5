"""Identifiers: UUIDv7, sorted by time, never reused (RFC 9562 section 5.7)."""

from __future__ import annotations

import os
import time
from uuid import UUID


def new_id() -> str:
    """A fresh UUIDv7 in its canonical 36-character form; later ones sort after earlier ones to the millisecond."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & (1 << 48) - 1) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(UUID(int=value))
