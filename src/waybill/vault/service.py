"""What a person does with locked configuration: lock, unlock, edit, rotate, and who may open it.

Everything is decided on values (``sops``, ``variables``) before anything is written, and each file is written whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC

import msgspec

from waybill.core import canonical, clock
from waybill.core.errors import ConflictError, ForbiddenError, InvalidInputError, NotFoundError
from waybill.vault import files as checkout
from waybill.vault import identity, sops, variables
from waybill.vault.files import Files
from waybill.vault.keystore import Keystore, Ring
from waybill.vault.model import Document
from waybill.vault.ports import Host, HostKeys
from waybill.vault.sops import Opened


class Done(msgspec.Struct, kw_only=True):
    """What was done, for the person.

    Attributes:
        path: The file that was written, or would have been.
        changed: Whether it was.
        notes: Sentences worth telling.
    """

    path: str
    changed: bool
    notes: list[str] = []


class Open(msgspec.Struct, frozen=True):
    """The locked file on disk, opened: its bytes, its values and the identity file that fitted."""

    data: bytes
    opened: Opened
    ring: Ring


class Vault:
    """One environment's locked configuration in one checkout."""

    def __init__(self, files: Files, keystore: Keystore) -> None:
        self.files = files
        self.keystore = keystore
        self.locked_name = files.name(files.locked)
        self.plain_name = files.name(files.plain)

    def open(self) -> Open:
        """The locked file, opened with whatever identity is at hand.

        Raises:
            NotFoundError: There is no locked file.
            ForbiddenError: No identity fits, it is another environment's file, or it was changed.
            InvalidInputError: It is malformed.
        """
        data = checkout.read(self.files, self.files.locked)
        document = sops.read(data, self.locked_name)
        named = sops.recipients(document)
        rings = self.keystore.rings(self.files.environment)
        fitting = next((ring for ring in rings for each in ring.identities if each.recipient in named), None)
        if fitting is None and (other := self.keystore.elsewhere(self.files.environment, named)):
            raise ForbiddenError(
                f"{self.locked_name} is locked for the environment {other}, not for {self.files.environment}.",
                "Was it copied or moved from there? Restore it from git.",
            )
        opened = sops.unlock(document, [each for ring in rings for each in ring.identities])
        ring = next(ring for ring in rings if opened.by in ring.identities)
        return Open(data, opened, ring)

    def variables(self) -> dict[str, str]:
        """The variables, for a command that is run with them."""
        opened = self.open().opened
        return variables.check(opened.leaves, self.locked_name, opened.document.nested)

    def lock(self) -> Done:
        """Lock the plain file; the first time makes the environment's identity.

        Raises:
            ConflictError: Git tracks the plain file, the locked file changed since it was unlocked, or it is locked
                for an identity that was rotated away.
            InvalidInputError: The plain file is malformed, or this is no git checkout.
        """
        if self.files.root is None:
            raise InvalidInputError("this is no git checkout.", "Lock where the locked file will be committed.")
        plain = checkout.read(self.files, self.files.plain)
        notes = self._keep_out_of_git()
        self.files.plain.chmod(0o600)
        document = self._plain_document(plain)
        if self.files.locked.exists():
            known = self.open()
            self._may_write(known)
            record = checkout.load_record(self.files)
            if record is None or record.locked != canonical.digest(known.data):
                self._same_values(document, known.opened)
            locked = sops.lock(document, [], known.opened, _now())
            changed = locked != known.data
        else:
            ring = self._first_ring(notes)
            locked = sops.lock(document, [ring.identities[0].recipient], None, _now())
            self.keystore.save(self.files.environment, ring)
            changed = True
        if changed:
            checkout.write(self.files.locked, locked, 0o644)
        checkout.save_record(self.files, locked, plain)
        return Done(path=self.locked_name, changed=changed, notes=notes)

    def unlock(self) -> Done:
        """Write the plain file.

        Raises:
            ConflictError: The plain file has changes that are not locked, or git tracks it.
        """
        known = self.open()
        plain = sops.plain_text(known.opened).encode()
        self._no_unlocked_changes(plain)
        notes = self._keep_out_of_git()
        changed = not self.files.plain.exists() or self.files.plain.read_bytes() != plain
        checkout.write(self.files.plain, plain, 0o600)
        checkout.save_record(self.files, known.data, plain)
        return Done(path=self.plain_name, changed=changed, notes=notes)

    def edit(self, editor: Callable[[str, InvalidInputError | None], str]) -> Done:
        """Change values without leaving a plain file.

        Args:
            editor: Gets the plain text, and what was wrong with it when it is shown again; returns the new text.
        """
        known = self.open()
        self._may_write(known)
        before = sops.plain_text(known.opened)
        self._no_unlocked_changes(before.encode())
        text, complaint = before, None
        while True:
            text = editor(text, complaint)
            try:
                document = self._plain_document(text.encode())
                locked = sops.lock(document, [], known.opened, _now())
                break
            except InvalidInputError as error:
                complaint = error
        if checkout.read(self.files, self.files.locked) != known.data:
            raise ConflictError(f"{self.locked_name} was changed by something else meanwhile.", "Edit it again.")
        if locked != known.data:
            checkout.write(self.files.locked, locked, 0o644)
        if self.files.plain.exists():
            checkout.write(self.files.plain, text.encode(), 0o600)
            checkout.save_record(self.files, locked, text.encode())
        return Done(path=self.locked_name, changed=locked != known.data)

    def rotate(self, service: str = "", hosts: HostKeys | None = None, *, without: str = "") -> Done:
        """A new identity, a new data key, every value encrypted anew; hosts that had the key get the new one.

        Args:
            service: Name by which the server knows the service; needed with ``hosts``.
            hosts: The server's sealed keys; None leaves hosts as they are, which is then told.
            without: A host that gets nothing.
        """
        known = self.open()
        others = [
            str(place[0])
            for place in known.opened.document.metadata
            if place[0] in ("pgp", "kms", "gcp_kms", "hckms", "azure_kv", "hc_vault") and len(place) > 1
        ]
        if others:
            raise InvalidInputError(
                f"{self.locked_name} is also locked for keys of {others[0]}, which waybill cannot lock anew.",
                "Rotate it with sops, or make it anew from the unlocked file.",
            )
        plain = self._plain_document(sops.plain_text(known.opened).encode())
        ring = self.keystore.renew(self.files.environment, self.files.project, known.ring)
        locked = sops.lock(plain, [ring.identities[0].recipient], None, _now())
        self.keystore.save(self.files.environment, ring)  # first the key, then what only it opens
        checkout.write(self.files.locked, locked, 0o644)
        record = checkout.load_record(self.files)
        if record and record.locked == canonical.digest(known.data) and self.files.plain.exists():
            plain_bytes = self.files.plain.read_bytes()
            if canonical.digest(plain_bytes) == record.plain:
                checkout.save_record(self.files, locked, plain_bytes)
        notes = [f"The new identity is the first one in {ring.path}; give colleagues that file again."]
        dropped = [each for each in known.opened.recipients if each != known.opened.by.recipient]
        notes += [f"{each} is no longer a recipient: nobody vouches for names in a locked file." for each in dropped]
        return Done(path=self.locked_name, changed=True, notes=notes + self._seal_again(ring, service, hosts, without))

    def grant(self, name: str, service: str, hosts: HostKeys, confirm: Callable[[Host], str]) -> Done:
        """Let a host open this environment.

        Args:
            name: Of the host.
            service: As the server knows it.
            hosts: The server's sealed keys.
            confirm: Asks the person for the fingerprint that the host printed when it was enrolled.

        Raises:
            ForbiddenError: The fingerprint is not that of the recipient which the server names.
        """
        ring = self._current(self.open())
        host = hosts.host(name)
        self._check(host)
        if not identity.same_fingerprint(confirm(host), host.recipient):
            raise ForbiddenError(
                f"that is not the fingerprint of the key which the server has for {name}: nothing was granted.",
                f"If you typed what {name} prints, the server holds another key for it than its own.",
            )
        text = self.keystore.text(self.files.environment, ring)
        hosts.put_sealed_key(service, self.files.environment, name, identity.seal(text.encode(), host.recipient))
        self.keystore.remember_host(name, host.recipient)
        return Done(path=self.locked_name, changed=True)

    def revoke(self, name: str, service: str, hosts: HostKeys) -> Done:
        """Take the environment from a host: it gets no more keys, and all that it knew is replaced by new keys.

        Raises:
            NotFoundError: The host has no key of this environment.
        """
        if name not in [host.name for host in hosts.sealed_hosts(service, self.files.environment)]:
            raise NotFoundError(
                f"{name} has no key of {self.files.environment}.",
                f"waybill keys list {self.files.environment} shows who has; waybill rotate replaces the key anyway.",
            )
        self._may_write(self.open())
        hosts.remove_sealed_key(service, self.files.environment, name)
        done = self.rotate(service, hosts, without=name)
        done.notes.append(f"{name} could read the values until now: change the secrets where they were issued.")
        return done

    def _check(self, host: Host) -> None:
        if not identity.same_fingerprint(host.fingerprint, host.recipient):
            raise ForbiddenError(f"the server names a fingerprint for {host.name} that is not that of its key.")

    def _seal_again(self, ring: Ring, service: str, hosts: HostKeys | None, without: str) -> list[str]:
        """Give the new key to hosts whose recipient a person confirmed here before; name the others."""
        environment = self.files.environment
        if hosts is None:
            return [f"Hosts still have the old key. Before the next deploy: waybill keys grant {environment} HOST"]
        known, notes = self.keystore.known_hosts(), []
        text = self.keystore.text(environment, ring).encode()
        for host in hosts.sealed_hosts(service, environment):
            if host.name == without:
                continue
            if known.get(host.name) == host.recipient:
                hosts.put_sealed_key(service, environment, host.name, identity.seal(text, host.recipient))
            else:
                notes.append(
                    f"{host.name} was not confirmed on this machine and still has the old key: "
                    f"waybill keys grant {environment} {host.name}"
                )
        return notes

    def _plain_document(self, data: bytes) -> Document:
        document = sops.read(data, self.plain_name)
        if not document.leaves:
            raise InvalidInputError(f"{self.plain_name} has no variables.", "Write one NAME: value a line.")
        variables.check(document.leaves, self.plain_name, document.nested)
        return document

    def _keep_out_of_git(self) -> list[str]:
        notes = []
        if line := checkout.keep_out_of_git(self.files):
            notes.append(f"Added {line} to .gitignore.")
        if checkout.locked_is_ignored(self.files):
            notes.append(f"git ignores {self.locked_name}, so that it would not be committed: change .gitignore.")
        return notes

    def _first_ring(self, notes: list[str]) -> Ring:
        given = [ring for ring in self.keystore.rings(self.files.environment) if ring.path is None]
        if given:
            notes.append("Locked for the identity in SOPS_AGE_KEY or SOPS_AGE_KEY_FILE.")
            return given[0]
        ring = self.keystore.create(self.files.environment, self.files.project)
        notes.append(
            f"Made the key of {self.files.environment}: {ring.path} (keep a copy: without it nobody opens the file)."
        )
        notes.append(
            "A colleague who may open it gets that file over a channel you trust and puts it into the same folder; "
            "hosts get it with waybill keys grant."
        )
        return ring

    def _current(self, known: Open) -> Ring:
        if known.opened.by != known.ring.identities[0] and known.ring.path is not None:
            raise ConflictError(
                f"{self.locked_name} is locked for an identity that was rotated away.",
                "Merge or pull the newer locked file first.",
            )
        return known.ring

    def _may_write(self, known: Open) -> None:
        self._current(known)
        if known.opened.document.style == "json":
            raise InvalidInputError(f"{self.locked_name}: JSON can be opened, not edited.", "Use YAML or dotenv.")

    def _no_unlocked_changes(self, plain: bytes) -> None:
        """A plain file with changes of its own is never overwritten."""
        if not self.files.plain.exists():
            return
        present = self.files.plain.read_bytes()
        record = checkout.load_record(self.files)
        if present != plain and (record is None or record.plain != canonical.digest(present)):
            raise ConflictError(
                f"{self.plain_name} has changes that are not locked.",
                f"Lock them (waybill lock {self.files.environment}), or move the file away.",
            )

    def _same_values(self, mine: Document, opened: Opened) -> None:
        """Refuse to lock over a file that somebody changed in between, unless both say the same."""
        here = {leaf.name: leaf.shown for leaf in mine.leaves}
        there = {leaf.name: leaf.shown for leaf in opened.leaves}
        differing = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        if differing:
            names = ", ".join(differing[:8]) + (", …" if len(differing) > 8 else "")
            raise ConflictError(
                f"{self.locked_name} changed since it was unlocked here (a pull or a merge?); it differs in {names}.",
                f"Keep yours aside (mv {self.plain_name} {self.plain_name}.mine), waybill unlock "
                f"{self.files.environment}, put your changes in, lock again.",
            )


def sealed_to(hosts: HostKeys, service: str, environment: str) -> Sequence[Host]:
    """The hosts that have the environment's key."""
    return sorted(hosts.sealed_hosts(service, environment), key=lambda host: host.name)


def _now() -> str:
    """RFC 3339 in whole seconds: SOPS formats the time anew before it binds the MAC to it, without fractions."""
    return clock.now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
