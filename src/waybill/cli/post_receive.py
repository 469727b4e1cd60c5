"""``waybill hook post-receive``: tells the server which branches and tags a push to a bare repository moved.

Git runs it at the end of every push while the person who pushes waits, so it starts with the standard library alone.
It never fails a push that git has already taken: when the server is away it says so, and the server's own sweep finds
the new heads.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import BinaryIO
from urllib.parse import urlsplit

from waybill.core.ids import new_id

ATTEMPTS = 3
PATIENCE = 4.0
"""Seconds that the server has, over all attempts."""
USAGE = """\
Usage: waybill hook post-receive --server URL --repository NAME --secret-file FILE

Run by git as the hook post-receive; `waybill hook install` writes it.

  --server URL        address of the hook, as the server printed it: https://HOST/hooks/ID
  --repository NAME   by which the server knows this repository
  --secret-file FILE  holds the hook's secret"""


class Away(Exception):  # noqa: N818 - it is no error of this program
    """The server could not be told; the message says why."""


def main(argv: Sequence[str]) -> int:
    """Run the hook with git's lines on standard input; 2 for wrong arguments, otherwise 0."""
    options = _options(argv)
    if options is None:
        print(USAGE, file=sys.stderr)
        return 2
    try:
        updates = read_updates(sys.stdin.buffer)
        if updates:
            body, headers = sign(options["--repository"], updates, _secret(options["--secret-file"]))
            deliver(options["--server"], body, headers)
            _say(f"told the server of {_names(updates)}")
    except Away as error:
        _say(f"{error}. The push is done; the server finds it by itself at its next look.")
    return 0


def read_updates(lines: Iterable[bytes] | BinaryIO) -> list[dict[str, str]]:
    """The branches and tags among git's ``before after ref`` lines (githooks(5))."""
    updates = []
    for line in lines:
        try:
            before, after, ref = line.decode().rstrip("\n").split(" ", 2)
        except ValueError:  # git allows names that are no UTF-8; no file of ours can name them
            continue
        if ref.startswith(("refs/heads/", "refs/tags/")):
            updates.append({"ref": ref, "before": before, "after": after})
    return updates


def sign(repository: str, updates: list[dict[str, str]], secret: bytes) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the request; ``forge/adapters/generic.py`` says what is signed."""
    who = os.environ.get("GL_USERNAME") or os.environ.get("GL_USER") or os.environ.get("REMOTE_USER") or _login()
    told = {"v": 1, "repository": repository, "pusher": who, "updates": updates}
    body = json.dumps(told, separators=(",", ":")).encode()
    identity, seconds = new_id(), str(int(time.time()))
    content = b"%s.%s.%s" % (identity.encode(), seconds.encode(), body)
    return body, {
        "Content-Type": "application/json",
        "Waybill-Delivery": identity,
        "Waybill-Timestamp": seconds,
        "Waybill-Signature": "v1=" + hmac.new(secret, content, hashlib.sha256).hexdigest(),
    }


def deliver(server: str, body: bytes, headers: dict[str, str]) -> None:
    """POST until the server has it; ``Away`` when it refuses, or does not answer in a few seconds."""
    deadline = time.monotonic() + PATIENCE
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(0.2 * attempt)
        try:
            status, answer = _post(server, body, headers, max(0.1, deadline - time.monotonic()))
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"{_host(server)} does not answer ({error or type(error).__name__})"
            continue
        if status in (200, 202):
            return
        reason = f"{_host(server)} answered {status}{_detail(answer)}"
        if status < 500 and status != 429:
            break
    raise Away(reason)


def _post(server: str, body: bytes, headers: dict[str, str], limit: float) -> tuple[int, bytes]:
    parts = urlsplit(server)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=limit)
    try:
        connection.request("POST", parts.path, body, headers)
        response = connection.getresponse()
        return response.status, response.read(65536)
    finally:
        connection.close()


def _options(argv: Sequence[str]) -> dict[str, str] | None:
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])]
    options = dict(zip(words[::2], words[1::2], strict=False))
    if len(words) != 6 or options.keys() != {"--server", "--repository", "--secret-file"}:
        return None
    return options if valid(options["--server"]) else None


def valid(server: str) -> bool:
    """Whether this is the address of a hook: http or https, a host, and a path."""
    try:
        parts = urlsplit(server)
        return parts.scheme in ("http", "https") and bool(parts.hostname and parts.path.strip("/")) and parts.port != 0
    except ValueError:
        return False


def _secret(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs a push some milliseconds
            secret = file.read(4096).strip()
            if os.fstat(file.fileno()).st_mode & 0o007:
                _say(f"everybody on this machine can read {path}; change that with: chmod o= {path}")
    except OSError as error:
        raise Away(f"{path} cannot be read ({error.strerror})") from error
    if not secret:
        raise Away(f"{path} is empty")
    return secret


def _login() -> str:
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        return ""


def _names(updates: list[dict[str, str]]) -> str:
    names = [update["ref"].split("/", 2)[2] for update in updates]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _host(server: str) -> str:
    return urlsplit(server).netloc.rpartition("@")[2]


def _detail(answer: bytes) -> str:
    """The server's sentence, fit for a terminal."""
    try:
        told = json.loads(answer)
        text = f"{told['detail']} {told.get('hint', '')}"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ""
    return ": " + "".join(char for char in text[:400] if char.isprintable()).strip().rstrip(".")


def _say(sentence: str) -> None:
    print(f"waybill: {sentence}", file=sys.stderr)
