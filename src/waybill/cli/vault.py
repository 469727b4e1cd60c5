"""Locked configuration on the command line: lock, unlock, edit, rotate, run, keys."""

from __future__ import annotations

import json as jsonlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import cyclopts

from waybill.core.errors import ForbiddenError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from waybill.vault.ports import Host, HostKeys
    from waybill.vault.service import Done, Vault

keys = cyclopts.App(name="waybill keys", help="Who can open an environment.", help_format="plaintext", version_flags=[])


def lock(environment: str, /, *, file: str | None = None, json: bool = False) -> None:
    """Lock .waybill/ENVIRONMENT.yml (or .env) into the .enc file beside it, which is committed.

    The first time makes the environment's key and says where it is. Only changed values change in the file.

    Args:
        environment: Such as production.
        file: Path of the locked file when it is not in .waybill/.
        json: Print one JSON object.
    """
    done = _vault(environment, file).lock()
    _tell(done, f"Locked {done.path}." if done.changed else f"{done.path} says the same already.", json=json)


def unlock(environment: str, /, *, file: str | None = None, json: bool = False) -> None:
    """Write the plain file, which git ignores, from the locked one.

    Args:
        environment: Such as production.
        file: Path of the locked file when it is not in .waybill/.
        json: Print one JSON object.
    """
    done = _vault(environment, file).unlock()
    _tell(done, f"Unlocked to {done.path}.", json=json)


def edit(environment: str, /, *, file: str | None = None, json: bool = False) -> None:
    """Change values in $EDITOR, without a plain file in the checkout.

    Args:
        environment: Such as production.
        file: Path of the locked file when it is not in .waybill/.
        json: Print one JSON object.
    """
    from waybill.cli.vault_editor import Editor

    vault = _vault(environment, file)
    with Editor(vault.files.plain.name, os.environ) as editor:
        done = vault.edit(editor)
    _tell(done, f"Locked {done.path}." if done.changed else "Nothing was changed.", json=json)


def rotate(environment: str, /, *, service: str = "", file: str | None = None, json: bool = False) -> None:
    """Make a new key and encrypt every value anew; hosts that had the key get the new one.

    Args:
        environment: Such as production.
        service: Name of the service on the server, to give its hosts the new key.
        file: Path of the locked file when it is not in .waybill/.
        json: Print one JSON object.
    """
    done = _vault(environment, file).rotate(service, connect() if service else None)
    _tell(done, f"Rotated {done.path}: commit it.", json=json)


def run(environment: str, /, *command: str, file: str | None = None, json: bool = False) -> None:  # noqa: ARG001
    """Run a command with the variables in its environment, and nowhere else: waybill run ENVIRONMENT -- COMMAND.

    Args:
        environment: Such as production.
        command: The command and its arguments, after --.
        file: Path of the locked file when it is not in .waybill/.
        json: Print a refusal as one JSON object; the output is the command's own.
    """
    if not command:
        raise InvalidInputError("there is no command to run.", f"waybill run {environment} -- COMMAND…")
    variables = _vault(environment, file).variables()
    inherited = {name: value for name, value in os.environ.items() if name != "SOPS_AGE_KEY"}
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, inherited | variables)  # noqa: S606 - an argument list, no shell
    except FileNotFoundError:
        raise NotFoundError(f"there is no command {command[0]!r}.") from None
    except OSError as error:
        raise InvalidInputError(f"{command[0]!r} cannot be run: {error.strerror}.") from None


@keys.command
def show(environment: str, /, *, file: str | None = None, json: bool = False) -> None:
    """Show the environment's public key and where its secret half lies on this machine.

    Args:
        environment: Such as production.
        file: Path of the locked file when it is not in .waybill/.
        json: Print one JSON object.
    """
    from waybill.vault import identity

    known = _vault(environment, file).open()
    recipient = known.opened.by.recipient
    row = {
        "environment": environment,
        "recipient": recipient,
        "fingerprint": identity.fingerprint(recipient),
        "identity": str(known.ring.path or "SOPS_AGE_KEY or SOPS_AGE_KEY_FILE"),
        "earlier": len(known.ring.identities) - 1,
    }
    if json:
        print(jsonlib.dumps(row))
        return
    for name, value in row.items():
        print(f"{name:<12} {value}")


@keys.command(name="list")
def list_(environment: str, /, *, service: str = "", file: str | None = None, json: bool = False) -> None:
    """List who can open the environment: the locked file's recipients, and with --service the hosts.

    Args:
        environment: Such as production.
        service: Name of the service on the server.
        file: Path of the locked file when it is not in .waybill/.
        json: Print one JSON object.
    """
    from waybill.vault import files, identity, sops
    from waybill.vault.service import sealed_to

    vault = _vault(environment, file)
    recipients = sops.recipients(sops.read(files.read(vault.files, vault.files.locked), vault.locked_name))
    hosts = sealed_to(connect(), service, environment) if service else []
    if json:
        rows = [{"host": host.name, "fingerprint": identity.fingerprint(host.recipient)} for host in hosts]
        print(jsonlib.dumps({"recipients": recipients, "hosts": rows}))
        return
    for recipient in recipients:
        print(f"identity  {recipient}")
    for host in hosts:
        print(f"host      {host.name}  {identity.fingerprint(host.recipient)}")
    if not service:
        print("Hosts are listed with --service NAME.")


@keys.command
def grant(
    environment: str,
    host: str,
    /,
    *,
    service: str,
    fingerprint: str = "",
    file: str | None = None,
    json: bool = False,
) -> None:
    """Let a host open the environment: its key is sealed to the host, the server carries ciphertext only.

    Args:
        environment: Such as production.
        host: Name of the host.
        service: Name of the service on the server.
        fingerprint: What the host printed when it was enrolled; asked for when it is not given.
        file: Path of the locked file when it is not in .waybill/.
        json: Print one JSON object.
    """

    def confirm(asked: Host) -> str:
        return fingerprint or _ask(f"Fingerprint that {asked.name} printed when it was enrolled: ")

    done = _vault(environment, file).grant(host, service, connect(), confirm)
    _tell(done, f"{host} can open {environment} from its next deploy on.", json=json)


@keys.command
def revoke(environment: str, host: str, /, *, service: str, file: str | None = None, json: bool = False) -> None:
    """Take the environment from a host: new key, every value encrypted anew, the other hosts get the new key.

    Args:
        environment: Such as production.
        host: Name of the host.
        service: Name of the service on the server.
        file: Path of the locked file when it is not in .waybill/.
        json: Print one JSON object.
    """
    done = _vault(environment, file).revoke(host, service, connect())
    _tell(done, f"Revoked {host}. Commit and push {done.path}.", json=json)


def connect() -> HostKeys:
    """The server's sealed keys."""
    from waybill.cli.sealed_keys import ServerKeys

    return ServerKeys()


def _vault(environment: str, file: str | None) -> Vault:
    from waybill.vault.files import locate
    from waybill.vault.keystore import Keystore
    from waybill.vault.service import Vault

    return Vault(locate(environment, file, Path.cwd()), Keystore(os.environ))


def _tell(done: Done, sentence: str, *, json: bool) -> None:
    if json:
        print(jsonlib.dumps({"path": done.path, "changed": done.changed, "notes": done.notes}))
        return
    print(sentence)
    for note in done.notes:
        print(f"  {note}")


def _ask(question: str) -> str:
    if not sys.stdin.isatty():
        raise ForbiddenError("nobody is here to confirm the fingerprint.", "Give it with --fingerprint.")
    return input(question)
