"""Where a person's machine keeps the identities of environments: outside of every checkout.

``$XDG_CONFIG_HOME/waybill/identities/<environment>/<project>-<id>.txt`` is an age identity file. It is found by the
recipient that the locked file names, so a clone may be moved or renamed; and only in the folder of its environment, so
that a file locked for staging does not open as production. Whoever gets a copy of the file can open the environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from waybill.core import clock
from waybill.core.errors import ForbiddenError, InvalidInputError
from waybill.vault import identity
from waybill.vault.files import write
from waybill.vault.identity import Identity

_EARLIER = 50


class Ring(msgspec.Struct, frozen=True):
    """An identity file: the present identity first, earlier ones after it; ``path`` is None for CI's variables."""

    path: Path | None
    identities: tuple[Identity, ...]


class Keystore:
    """The identities on this machine.

    Args:
        environ: The process environment: HOME, XDG_CONFIG_HOME, and for CI SOPS_AGE_KEY and SOPS_AGE_KEY_FILE.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        home = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".config")
        self.folder = Path(home) / "waybill" / "identities"
        self._known = Path(home) / "waybill" / "known-hosts"

    def rings(self, environment: str) -> list[Ring]:
        """All identity files that may open this environment, those given by variables last.

        Raises:
            ForbiddenError: An identity file is readable by others.
            InvalidInputError: One is malformed, or the one named by SOPS_AGE_KEY_FILE is not there.
        """
        rings = [self._read(path) for path in sorted((self.folder / environment).glob("*.txt"))]
        if text := self._environ.get("SOPS_AGE_KEY", ""):
            rings.append(Ring(None, identity.parse(text, "SOPS_AGE_KEY")))
        if named := self._environ.get("SOPS_AGE_KEY_FILE", ""):
            try:
                text = Path(named).read_text()
            except (OSError, UnicodeDecodeError):
                raise InvalidInputError(f"SOPS_AGE_KEY_FILE names {named}, which cannot be read.") from None
            rings.append(Ring(None, identity.parse(text, named)))
        return rings

    def elsewhere(self, environment: str, recipients: Sequence[str]) -> str:
        """Name of another environment whose identity one of these recipients is; empty when there is none."""
        for path in sorted(self.folder.glob("*/*.txt")):
            if path.parent.name != environment and any(
                each.recipient in recipients for each in self._read(path).identities
            ):
                return path.parent.name
        return ""

    def create(self, environment: str, project: str) -> Ring:
        """A new identity, not stored yet."""
        fresh = identity.new()
        return Ring(self.folder / environment / f"{project}-{fresh.recipient[4:12]}.txt", (fresh,))

    def renew(self, environment: str, project: str, ring: Ring) -> Ring:
        """The ring with a new identity before those it had, not stored yet; one from variables gets a file."""
        first = self.create(environment, project)
        return Ring(ring.path or first.path, (*first.identities, *ring.identities[:_EARLIER]))

    def save(self, environment: str, ring: Ring) -> None:
        """Store a ring; one that came from variables is left to whoever set them."""
        if ring.path is not None:
            ring.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write(ring.path, self.text(environment, ring).encode(), 0o600)

    def text(self, environment: str, ring: Ring) -> str:
        """The ring as an identity file, as it is stored and as it is sealed to hosts."""
        return identity.write(ring.identities, f"waybill: environment {environment}, written {clock.stamp()}")

    def known_hosts(self) -> dict[str, str]:
        """Recipients of hosts whose fingerprint a person confirmed on this machine, by host."""
        if not self._known.exists():
            return {}
        rows = (line.split() for line in self._known.read_text().splitlines())
        return {row[0]: row[1] for row in rows if len(row) == 2}

    def remember_host(self, host: str, recipient: str) -> None:
        """Keep that a person confirmed this host's recipient."""
        known = self.known_hosts() | {host: recipient}
        write(self._known, "".join(f"{name} {value}\n" for name, value in sorted(known.items())).encode(), 0o600)

    def _read(self, path: Path) -> Ring:
        if path.stat().st_mode & 0o077:
            raise ForbiddenError(f"{path} can be read by others.", f"Say: chmod 600 {path}")
        try:
            return Ring(path, identity.parse(path.read_text(), str(path)))
        except UnicodeDecodeError:
            raise InvalidInputError(f"{path} is no identity file.", "Remove it, or restore it.") from None
