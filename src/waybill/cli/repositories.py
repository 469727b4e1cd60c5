"""``waybill repository``: what the server mirrors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import cyclopts

from waybill.cli.output import Json, emit, table
from waybill.core.errors import InvalidInputError, UnavailableError

app = cyclopts.App(
    name="waybill repository",
    help="Tell the server of git repositories, and how it may read them.",
    help_format="plaintext",
    version_flags=[],
)


@app.command
def add(
    name: str,
    url: str,
    /,
    *,
    deploy_key: Path | None = None,
    new_deploy_key: Annotated[bool, cyclopts.Parameter(negative=())] = False,
    token_file: Path | None = None,
    known_hosts: Path | None = None,
    json: Json = False,
) -> None:
    """Make a repository known, or change its address or credentials; the server fetches it at once.

    Args:
        name: By which hooks and grants name it, for example team/hello.
        url: Where the server fetches it: https, ssh, or a folder on the server.
        deploy_key: File with an SSH private key that may read it.
        new_deploy_key: Make a key, show its public half, wait until the forge has it; only the server keeps the key.
        token_file: File with a token that is sent as the password over https; - reads standard input.
        known_hosts: File with the SSH host keys to trust; without one, they are fetched from here and shown.
        json: Print JSON.
    """
    from waybill.cli.client import Client
    from waybill.wire.api import RepositoryInfo, RepositoryWanted

    if new_deploy_key:
        _refuse_new_key(url, given=deploy_key, quiet=json)
    client = Client(timeout=150)
    pinned = _read(known_hosts)
    if pinned is None and _ssh_host(url) is not None:
        pinned = _scan(url, quiet=json)
    private = _new_key(name) if new_deploy_key else _read(deploy_key)
    wanted = RepositoryWanted(name=name, url=url, deploy_key=private, https_token=_read(token_file), known_hosts=pinned)
    while True:
        try:
            made = client.call("POST", "/api/repositories", RepositoryInfo, wanted)
            break
        except UnavailableError as error:
            if not new_deploy_key:
                raise
            print(f"\nNot yet: {error.reason}", file=sys.stderr)
            _await_forge()  # with the same key: the forge may have it by now
    if json:
        emit(made)
        return
    branches = "1 branch" if len(made.heads) == 1 else f"{len(made.heads)} branches"
    print(f"{name} is known with {branches}. What is there now is not deployed; the next push is.")
    print(f"Next: waybill hook create --forge FORGE --repository {name}, so that pushes are live at once;")
    print(f"      waybill grant SERVICE/ENVIRONMENT --repository {name} --branch main --host LABEL=VALUE")


@app.command(name="list")
def list_repositories(*, json: Json = False) -> None:
    """List repositories.

    Args:
        json: Print JSON.
    """
    from waybill.cli.client import Client
    from waybill.wire.api import RepositoryInfo

    found = Client().call("GET", "/api/repositories", list[RepositoryInfo])
    if json:
        emit(found)
        return
    rows = ((one.name, one.url, " ".join(one.credentials) or "none", str(len(one.heads))) for one in found)
    table(("NAME", "ADDRESS", "CREDENTIALS", "BRANCHES"), rows, "No repository is known yet.")


def _read(path: Path | None) -> str | None:
    if path is None:
        return None
    if str(path) == "-":
        return sys.stdin.read()
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}.") from error


def _refuse_new_key(url: str, *, given: Path | None, quiet: bool) -> None:
    if given is not None:
        raise InvalidInputError("--deploy-key gives a key and --new-deploy-key makes one.", "Choose one of them.")
    if _ssh_host(url) is None:
        raise InvalidInputError(f"{url} is not reached by SSH, so no key opens it.", "Its address is git@HOST:PATH.")
    if quiet:
        raise InvalidInputError(
            "--new-deploy-key waits for a person, and --json is for programs.", "Make a key and give it: --deploy-key."
        )


def _new_key(name: str) -> str:
    """A fresh private key, once the person has given its public half to the forge."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH).decode()
    print(f"Deploy key for {name}; give it to the forge, for reading only:\n\n{public} waybill\n")
    print("  GitHub, Gitea, Forgejo: the repository's Settings, Deploy keys; GitLab: Settings, Repository, Deploy keys")
    _await_forge()
    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption()).decode()


def _await_forge() -> None:
    print("Press Enter when it is there, Ctrl-C to leave all as it was. ", end="", flush=True)
    if not sys.stdin.readline():
        raise InvalidInputError("nobody is there to say so.", "Make a key and give it: --deploy-key FILE.")


def _ssh_host(url: str) -> tuple[str, str] | None:
    """(host, port) of an address that is reached by SSH."""
    if url.startswith("ssh://"):
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        return (parts.hostname or "", str(parts.port or 22))
    if "://" not in url and not url.startswith("/") and "@" in url and ":" in url:
        return url.partition("@")[2].partition(":")[0], "22"
    return None


def _scan(url: str, *, quiet: bool) -> str:
    """The host keys as they look from here, for the person to compare with what the forge publishes."""
    host, port = _ssh_host(url) or ("", "22")
    try:
        command = ["ssh-keyscan", "-T", "10", "-p", port, "--", host]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
        shown = subprocess.run(
            ["ssh-keygen", "-lf", "-"], input=found, capture_output=True, text=True, check=False, timeout=30
        ).stdout
    except FileNotFoundError:
        raise InvalidInputError(
            "ssh-keyscan is not installed here.", "Give the host keys: --known-hosts FILE (Debian: openssh-client)."
        ) from None
    if not found.strip():
        raise InvalidInputError(f"{host} shows no SSH host keys.", "Give them: --known-hosts FILE.")
    if not quiet:
        print(f"Pinned host keys of {host}; compare them with what the forge publishes:\n{shown}")
    return found
