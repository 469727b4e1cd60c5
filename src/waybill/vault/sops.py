"""SOPS files: opened with an age identity, locked so that an edit changes only what was edited.

A file has one random data key, sealed to each recipient with age. Each value is encrypted with it and bound to its
place (``cipher``); the MAC, a SHA-512 over all values in order, is encrypted the same way and bound to the time of
the last change. Stricter than SOPS itself: the MAC is mandatory, a readable value is refused unless its name ends with
``_unencrypted``, and so are the rules by which SOPS leaves other values readable.

Source of the format: getsops/sops, ``sops.go``, ``aes/cipher.go`` and ``stores/``.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from waybill.core.errors import ForbiddenError, InvalidInputError, TooLargeError
from waybill.vault import cipher, dotenvtext, identity, jsontext, yamltext
from waybill.vault.identity import Identity
from waybill.vault.model import LIMIT, Document, Kind, Leaf, Note, Style, exchange

_STYLES: Final[dict[str, Style]] = {".yml": "yaml", ".yaml": "yaml", ".env": "dotenv", ".json": "json"}
_READERS: Final = {"yaml": yamltext.read, "dotenv": dotenvtext.read, "json": jsontext.read}
_KINDS: Final = ("str", "int", "float", "bool", "bytes", "time")
_CONFLICT: Final = re.compile(r"^<{7} .*^>{7} ", re.MULTILINE | re.DOTALL)
_RULES: Final = (
    "encrypted_suffix", "unencrypted_regex", "encrypted_regex", "unencrypted_comment_regex", "encrypted_comment_regex",
)  # fmt: skip
_MAC_ONLY_ENCRYPTED: Final = hashlib.sha256(b"sops").digest()


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """A locked file whose values were all decrypted and whose MAC is right.

    Attributes:
        document: As it was read; its leaves hold ``ENC[…]``.
        key: The data key.
        leaves: The same leaves, decrypted.
        notes: The same comments, decrypted.
        recipients: Who can open it, in the order of the file.
        by: The identity that opened it.
    """

    document: Document
    key: bytes
    leaves: tuple[Leaf, ...]
    notes: tuple[Note, ...]
    recipients: tuple[str, ...]
    by: Identity

    def __repr__(self) -> str:
        return f"Opened({self.document.path}, {len(self.leaves)} values)"


def read(data: bytes, path: str) -> Document:
    """The file as a document, its syntax told by its name: ``.yml``, ``.yaml``, ``.env`` or ``.json``.

    Raises:
        TooLargeError: It has more than 512 KiB.
        InvalidInputError: It is malformed; the sentence says where.
    """
    style = next((style for suffix, style in _STYLES.items() if path.endswith(suffix)), None)
    if style is None:
        raise InvalidInputError(f"{path}: the name tells no syntax.", "Let it end with .yml, .env or .json.")
    if len(data) > LIMIT:
        raise TooLargeError(f"{path} has {len(data)} bytes; variables files may have {LIMIT}.", "Ship files apart.")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path}: byte {error.start} is not UTF-8.", "Save the file as UTF-8.") from None
    if text.startswith("\ufeff") or "\0" in text:
        raise InvalidInputError(f"{path} has a byte order mark or a NUL in it.", "Save the file as plain UTF-8.")
    if _CONFLICT.search(text):
        raise InvalidInputError(
            f"{path} holds the conflict markers of a merge.",
            f"Take one side whole (git checkout --ours {path}), unlock, put the other side's changes in, lock.",
        )
    return _READERS[style](text, path)


def recipients(document: Document) -> tuple[str, ...]:
    """The age recipients that the file names."""
    return tuple(
        leaf.text for place, leaf in document.metadata.items() if place[0] == "age" and place[-1] == "recipient"
    )


def unlock(document: Document, identities: Sequence[Identity]) -> Opened:
    """Open a locked document with whichever identity it names.

    Raises:
        InvalidInputError: It is no locked file, its MAC is missing, or it holds readable values or rules for them.
        ForbiddenError: No identity fits, or a value, the MAC or the set of values was changed.
    """
    path = document.path
    if not document.metadata:
        raise InvalidInputError(
            f"{path} is no locked file, or its end is missing: it has no sops metadata.", "Restore it from git."
        )
    if any(place[0] == "key_groups" for place in document.metadata):
        raise InvalidInputError(f"{path} needs keys of several groups (Shamir), which waybill does not open.")
    rule = next((rule for rule in _RULES if document.meta(rule)), "")
    if rule or document.meta("unencrypted_suffix") not in ("", "_unencrypted"):
        raise InvalidInputError(
            f"{path} has a rule ({rule or 'unencrypted_suffix'}) that leaves values readable.",
            "Lock it anew without the rule; names that end with _unencrypted stay readable.",
        )
    if not document.meta("mac") or not document.meta("lastmodified"):
        raise InvalidInputError(
            f"{path} has no MAC, so that nobody could tell whether values are missing.", "Restore it from git."
        )
    key, by = _data_key(document, identities)
    leaves = decrypt(document, key)
    branches = _branches(document)
    notes = tuple(_open_note(note, key, branches) for note in document.notes)
    return Opened(document=document, key=key, leaves=leaves, notes=notes, recipients=recipients(document), by=by)


def _data_key(document: Document, identities: Sequence[Identity]) -> tuple[bytes, Identity]:
    path, named = document.path, recipients(document)
    by_recipient = {each.recipient: each for each in identities}
    for place, leaf in document.metadata.items():
        if place[0] == "age" and place[-1] == "recipient" and leaf.text in by_recipient:
            fitting = by_recipient[leaf.text]
            key = identity.unseal(document.meta(*place[:-1], "enc"), fitting, f"{path}: the data key")
            if len(key) != 32:
                raise ForbiddenError(f"{path}: the data key has {len(key)} bytes, not 32.", "Restore it from git.")
            return key, fitting
    locked_for = ", ".join(_short(each) for each in named) or "nobody with an age key"
    have = ", ".join(_short(each.recipient) for each in identities) or "none"
    raise ForbiddenError(
        f"{path} is locked for {locked_for}; the identities at hand are: {have}.",
        "Was it moved from another environment or repository? "
        "Else ask a colleague for the identity, or set SOPS_AGE_KEY_FILE.",
    )


def decrypt(document: Document, key: bytes) -> tuple[Leaf, ...]:
    """The leaves of a locked document, decrypted, after its MAC was found right.

    Raises:
        InvalidInputError: A value stands there in plain.
        ForbiddenError: A value or the MAC was changed, moved, removed or added.
    """
    path = document.path
    only_encrypted = document.meta("mac_only_encrypted").lower() == "true"
    leaves = tuple(_open_leaf(leaf, key, path, only_encrypted=only_encrypted) for leaf in document.leaves)
    sealed = cipher.unseal(key, document.meta("mac"), document.meta("lastmodified"))
    expected = mac(leaves, _MAC_ONLY_ENCRYPTED if only_encrypted else b"")
    if sealed is None or not hmac.compare_digest(sealed[1].upper(), expected.encode()):
        raise ForbiddenError(
            f"{path} was changed by someone without the key: its MAC does not fit its values.",
            "A value was removed, added or moved, perhaps by a merge: restore the file from git.",
        )
    return leaves


def mac(leaves: Sequence[Leaf], seed: bytes = b"") -> str:
    """SHA-512 over the values in order, upper-case hex; null counts as nothing."""
    digest = hashlib.sha512(seed)
    for leaf in leaves:
        digest.update(leaf.text.encode())
    return digest.hexdigest().upper()


def _open_leaf(leaf: Leaf, key: bytes, path: str, *, only_encrypted: bool) -> Leaf:
    if leaf.in_plain:
        if only_encrypted and leaf.text:
            raise InvalidInputError(
                f"{path}: {leaf.name} is readable and not covered by the MAC.", "Lock the file anew."
            )
        return leaf
    if not leaf.text.startswith(cipher.PREFIX):
        raise InvalidInputError(
            f"{path}, line {leaf.line}: {leaf.name} stands there in plain.",
            "Put it into the unlocked file and lock; only names that end with _unencrypted stay readable.",
        )
    opened = cipher.unseal(key, leaf.text, leaf.path)
    if opened is None or opened[0] not in _KINDS:
        raise ForbiddenError(
            f"{path}, line {leaf.line}: {leaf.name} does not open: it was changed, or moved from another name or file.",
            "Restore the file from git.",
        )
    try:
        text = opened[1].decode()
    except UnicodeDecodeError:
        raise InvalidInputError(f"{path}: {leaf.name} holds bytes that are not UTF-8 text.") from None
    kind: Kind = opened[0]  # type: ignore[assignment]
    return msgspec.structs.replace(leaf, kind=kind, text=text)


def _open_note(note: Note, key: bytes, branches: Sequence[str]) -> Note:
    """A comment, decrypted where it is encrypted; comments are outside of the MAC and a readable one is just that."""
    for branch in branches if note.text.startswith(cipher.PREFIX) else ():
        opened = cipher.unseal(key, note.text, branch)
        if opened is not None and opened[0] == "comment":
            return msgspec.structs.replace(note, text=opened[1].decode(errors="replace").replace("\n", "\n#"))
    return note


def _branches(document: Document) -> list[str]:
    """What a comment may be bound to: the root, or any map that values stand in."""
    places = {leaf.place[:depth] for leaf in document.leaves for depth in range(1, len(leaf.place))}
    return [":", *sorted({Leaf(place, "str", "", 0).path for place in places})]


def plain_text(opened: Opened) -> str:
    """The file as a person edits it: values and comments readable, metadata gone, all else as it stands.

    Raises:
        InvalidInputError: It is JSON, or a value cannot be written in its syntax.
    """
    document = opened.document
    if document.style == "json":
        raise InvalidInputError(f"{document.path}: JSON can be opened, not edited.", "Use YAML or dotenv.")
    spans = [(start, end, "") for start, end in document.blocks]
    for was, leaf in zip(document.leaves, opened.leaves, strict=True):
        if was is not leaf:
            spans.append((leaf.start, leaf.end, _written(document, leaf)))
    spans += [(note.start, note.end, note.text) for note in opened.notes]
    text = exchange(document.text, spans)
    return text if text.endswith("\n") or not text else text + "\n"


def _written(document: Document, leaf: Leaf) -> str:
    if document.style == "dotenv":
        return dotenvtext.write(leaf, document.path)
    rest_of_line = document.text[leaf.end :].partition("\n")[0]
    return yamltext.write(leaf, literal=document.flat and len(leaf.place) == 1 and not rest_of_line.strip())


def lock(plain: Document, to: Sequence[str], previous: Opened | None, modified: str) -> bytes:
    """The locked bytes of a plain document.

    Args:
        plain: Its values are scalars; see ``variables.check``.
        to: Recipients of a new file; unused when there is a previous one, which keeps its own.
        previous: The file as locked before; its data key, and the ciphertext of what did not change, are kept.
        modified: RFC 3339 UTC in whole seconds, as SOPS writes it (the MAC is bound to it).

    Raises:
        InvalidInputError: It is locked already, or is not one NAME: value a line.
    """
    if plain.metadata or plain.style == "json" or not plain.flat or plain.nested:
        raise InvalidInputError(f"{plain.path} cannot be locked as it is.", "One NAME: value a line, not locked yet.")
    key = previous.key if previous else os.urandom(32)
    kept = _Kept(previous)
    spans = []
    for leaf in plain.leaves:
        if leaf.text.startswith(cipher.PREFIX):
            raise InvalidInputError(
                f"{plain.path}, line {leaf.line}: {leaf.name} holds a value that is locked already."
            )
        if not leaf.in_plain:
            sealed = kept.take(leaf.path, leaf.kind, leaf.text) or cipher.seal(
                key, leaf.kind, leaf.text.encode(), leaf.path
            )
            spans.append((leaf.start, leaf.end, sealed))
        elif leaf.text:  # written in the form that every reader takes for the same value, since the MAC covers it
            spans.append((leaf.start, leaf.end, _written(plain, leaf)))
    for note in plain.notes:
        if note.text:
            sealed = kept.take(":", "comment", note.text) or cipher.seal(key, "comment", note.text.encode(), ":")
            spans.append((note.start, note.end, sealed))
    body = exchange(plain.text, spans)
    if previous and body == _body(previous.document):
        return previous.document.text.encode()
    body += "" if not body or body.endswith("\n") else "\n"
    sealed_mac = cipher.seal(key, "str", mac(plain.leaves).encode(), modified)
    locked = (body + _metadata(plain.style, key, to, previous, modified=modified, sealed_mac=sealed_mac)).encode()
    _verify(plain, read(locked, plain.path), key)
    return locked


class _Kept:
    """The ciphertexts of the file as it was, each used at most once."""

    def __init__(self, previous: Opened | None) -> None:
        self.found: dict[tuple[str, str, str], list[str]] = {}
        if previous is not None:
            document = previous.document
            for was, leaf in zip(document.leaves, previous.leaves, strict=True):
                if was.text.startswith(cipher.PREFIX) and was is not leaf:
                    self.found.setdefault((leaf.path, leaf.kind, leaf.text), []).append(was.text)
            for was_note, note in zip(document.notes, previous.notes, strict=True):
                if was_note is not note:
                    self.found.setdefault((":", "comment", note.text), []).append(was_note.text)

    def take(self, path: str, kind: str, text: str) -> str | None:
        sealed = self.found.get((path, kind, text))
        return sealed.pop(0) if sealed else None


def _body(document: Document) -> str:
    return exchange(document.text, [(start, end, "") for start, end in document.blocks])


def _metadata(
    style: Style, key: bytes, to: Sequence[str], previous: Opened | None, *, modified: str, sealed_mac: str
) -> str:
    """The metadata block: the previous one with a new MAC and time, or a new one."""
    if previous is None:
        write = dotenvtext.metadata if style == "dotenv" else yamltext.metadata
        return write([(each, identity.seal(key, each)) for each in to], modified, sealed_mac)
    document = previous.document
    new = {"lastmodified": modified if style == "dotenv" else f'"{modified}"', "mac": sealed_mac}
    pieces = []
    for start, end in document.blocks:
        spans = [
            (leaf.start - start, leaf.end - start, new[str(place[0])])
            for place, leaf in document.metadata.items()
            if place in (("mac",), ("lastmodified",)) and start <= leaf.start < end
        ]
        piece = exchange(document.text[start:end], spans)
        pieces.append(piece if piece.endswith("\n") else piece + "\n")
    return "".join(pieces)


def _verify(plain: Document, locked: Document, key: bytes) -> None:
    """Nothing is written that would not open again to the very same values."""
    opened = decrypt(locked, key)
    if [(leaf.place, leaf.kind, leaf.text) for leaf in opened] != [
        (leaf.place, leaf.kind, leaf.text) for leaf in plain.leaves
    ]:
        raise InvalidInputError(
            f"{plain.path}: locked, it would not open to the same values.", "Write one NAME: value a line, quoted."
        )


def _short(recipient: str) -> str:
    return recipient if len(recipient) < 20 else f"{recipient[:12]}…{recipient[-4:]}"
