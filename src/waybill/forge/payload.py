"""From a forge's JSON to events: decoding that names the faulty field, and the checks that all forges share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from waybill.core.errors import InvalidInputError
from waybill.forge.model import Actor, Ignored, Push, Repository

T = TypeVar("T")

PATHS = 1000
"""Paths kept of a push; one that touches more is told without them."""

_OBJECT_ID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_REPOSITORY = re.compile(r"[^\s/\x00-\x1f\x7f][^\s\x00-\x1f\x7f]{0,199}")
_HTTP_URL = re.compile(r"https?://[^\s@/\x00-\x1f\x7f]+(?:/[^\s\x00-\x1f\x7f]*)?")
_SSH_URL = re.compile(r"[A-Za-z0-9_][^\s\x00-\x1f\x7f]*")
# What git check-ref-format(1) forbids anywhere in a name, and at the edges of its parts.
_NO_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|\Z)|[./]\Z")


class Commit(msgspec.Struct):
    """The files of one commit, as all forges list them."""

    added: list[str] | None = None
    modified: list[str] | None = None
    removed: list[str] | None = None


class Anything(msgspec.Struct):
    """Any JSON object."""


def decode(forge: str, event: str, body: bytes, kind: type[T]) -> T:
    """The body as ``kind``, whose unknown fields are passed over.

    Raises:
        InvalidInputError: No JSON object, or a field of another type or missing, by its path.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidInputError(f"the {forge} event {event!r} cannot be understood: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        hint = "Choose application/json as the content type in the forge." if body[:1] not in (b"{", b"[") else ""
        raise InvalidInputError(f"the body is no JSON: {error}.", hint) from error
    except RecursionError as error:
        raise InvalidInputError("the body is nested too deeply.") from error


def push(  # noqa: D417 - the rest has the names of Push
    forge: str,
    *,
    repository: Repository,
    ref: str,
    before: str,
    after: str,
    actor: Actor,
    forced: bool | None = None,
    commits: Sequence[Commit] | None = None,
    where: str = "$",
) -> Push | Ignored:
    """A checked ``Push``; ``Ignored`` for references that are neither branches nor tags.

    Args:
        forge: Its name, for the sentences.
        before: Object id, all zeros for none.
        after: The same.
        commits: All commits of the push; None when the payload may lack some.
        where: Path of the object that holds ``ref``, ``before`` and ``after``.
    """
    for name, value in (("before", before), ("after", after)):
        if not _OBJECT_ID.fullmatch(value):
            raise InvalidInputError(f"the {forge} push holds no object id at {where}.{name}.")
    if not valid_ref(ref):
        raise InvalidInputError(f"the {forge} push holds no git reference at {where}.ref.")
    if ref.startswith("refs/heads/"):
        kind = "branch"
    elif ref.startswith("refs/tags/"):
        kind = "tag"
    else:
        return Ignored(event="push", reason=f"{ref} is neither a branch nor a tag.")
    old, new = _present(before), _present(after)
    if old is None and new is None:
        raise InvalidInputError(f"the {forge} push has neither a commit before nor after it at {where}.")
    return Push(
        repository=repository,
        ref=ref,
        kind=kind,  # type: ignore[arg-type]  # mypy widens the literal to str
        before=old,
        after=new,
        actor=actor,
        forced=forced,
        paths=None if commits is None or old is None or new is None else _paths(commits),
    )


def repository(forge: str, name: str, where: str, http_url: str | None, ssh_url: str | None) -> Repository:
    """A checked ``Repository``; ``where`` is the path of the name in the payload."""
    if not _REPOSITORY.fullmatch(name):
        raise InvalidInputError(f"the {forge} event holds no repository name at {where}.")
    for kind, url, pattern in (("HTTP", http_url, _HTTP_URL), ("SSH", ssh_url, _SSH_URL)):
        if url and (len(url) > 2000 or not pattern.fullmatch(url)):
            raise InvalidInputError(f"the {forge} event holds a malformed {kind} clone address beside {where}.")
    return Repository(name=name, http_url=http_url or None, ssh_url=ssh_url or None)


def actor(name: str | None, number: int | str | None = None) -> Actor:
    """An ``Actor`` fit to be shown: printable and at most 200 characters."""
    shown = "".join(char for char in (name or "")[:1000] if char.isprintable())[:200]
    return Actor(name=shown, id=None if number is None else str(number)[:40])


def valid_ref(ref: str) -> bool:
    """Whether git would take this as the full name of a reference (git check-ref-format)."""
    return 0 < len(ref) <= 400 and "/" in ref and ref[0] not in "/." and not _NO_REF.search(ref)


def _present(object_id: str) -> str | None:
    return object_id if object_id.strip("0") else None


def _paths(commits: Iterable[Commit]) -> tuple[str, ...] | None:
    found = {
        path
        for commit in commits
        for paths in (commit.added, commit.modified, commit.removed)
        for path in paths or ()
        if "\x00" not in path
    }
    return tuple(sorted(found)) if len(found) <= PATHS else None
