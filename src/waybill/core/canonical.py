"""Canonical JSON: RFC 8785, narrowed so that every implementation agrees on the bytes.

Allowed are objects with ASCII keys, arrays, strings, booleans, null, and integers of magnitude below 2^53.
Floats are refused, since their text form is where implementations differ. Bytes that were written once are
stored and hashed as they are, never encoded again.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec

from waybill.core.errors import InvalidInputError

LIMIT = 2**53


def encode(value: Any) -> bytes:
    """The canonical bytes of a JSON value or msgspec struct.

    Raises:
        InvalidInputError: A float, a non-ASCII key, a lone surrogate or an integer of 2^53 or more is in it.
    """
    plain = msgspec.to_builtins(value, builtin_types=())
    _check(plain, "$")
    text = json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"canonical JSON cannot hold a lone surrogate: {error}") from error


def digest(data: bytes) -> str:
    """``sha256:<64 hex digits>`` of the bytes as they stand."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _check(value: Any, where: str) -> None:
    match value:
        case None | bool() | str():
            return
        case int():
            if abs(value) >= LIMIT:
                raise InvalidInputError(f"canonical JSON holds integers below 2^53; {where} is {value}")
        case dict():
            for key, item in value.items():
                if not isinstance(key, str) or not key.isascii():
                    raise InvalidInputError(f"canonical JSON keys are ASCII strings; {where} has {key!r}")
                _check(item, f"{where}.{key}")
        case list() | tuple():
            for index, item in enumerate(value):
                _check(item, f"{where}[{index}]")
        case _:
            raise InvalidInputError(f"canonical JSON holds no {type(value).__name__}; {where} is one")
