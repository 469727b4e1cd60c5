"""``waybill hook``: the git hook that tells the server of pushes to a bare repository."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import cyclopts

from waybill.core.errors import InvalidInputError, NotFoundError

app = cyclopts.App(
    name="waybill hook",
    help="Tell the server of pushes to a bare repository.",
    help_format="plaintext",
    version_flags=[],
)

PLACES = {
    "github": "Settings, Webhooks, Add webhook: Payload URL, Secret, application/json, just the push event",
    "gitlab": "Settings, Webhooks, Add new webhook: URL, Secret token, Push events and Tag push events",
    "gitea": "Settings, Webhooks, Add webhook, Gitea: Target URL, Secret, POST, application/json",
    "forgejo": "Settings, Webhooks, Add webhook, Forgejo: Target URL, Secret, POST, application/json",
}
"""Where a repository's page takes address and secret."""
MARK = "# Written by: waybill hook install"
SCRIPT = """\
#!/bin/sh
{mark}
# Tells the server of each push, then runs what is executable in post-receive.d/ with the same lines.
updates=$(cat)
printf '%s\\n' "$updates" | {command}
status=0
for other in "$0.d"/*; do
  if [ -f "$other" ] && [ -x "$other" ]; then
    printf '%s\\n' "$updates" | "$other" "$@" || status=$?
  fi
done
exit "$status"
"""


@app.command(name="post-receive")
def post_receive(*, server: str, repository: str, secret_file: Path) -> int:
    """Tell the server what a push moved; git runs this with its lines on standard input.

    Args:
        server: Address of the hook, as the server printed it: https://HOST/hooks/ID.
        repository: By which the server knows this repository.
        secret_file: Holds the hook's secret.
    """
    from waybill.cli.post_receive import main

    return main(["--server", server, "--repository", repository, "--secret-file", str(secret_file)])


@app.command
def install(
    repo: Path,
    *,
    server: str,
    name: str,
    secret_file: Path | None = None,
    json: Annotated[bool, cyclopts.Parameter(negative=())] = False,
) -> None:
    """Write the hook post-receive of a bare repository; a hook that is there keeps running, from post-receive.d/.

    Args:
        repo: Folder of the repository.
        server: Address of the hook, as the server printed it: https://HOST/hooks/ID.
        name: By which the server knows this repository.
        secret_file: Holds the hook's secret; when none is given, waybill-hook.secret in the repository's folder,
            made with a fresh secret when it is not there.
        json: Print one JSON object.
    """
    from waybill.cli.post_receive import valid

    if not valid(server):
        raise InvalidInputError(f"{server!r} is no address of a hook.", "It looks like https://HOST/hooks/ID.")
    folder, hook = _places(repo)
    secret = secret_file.absolute() if secret_file is not None else folder / "waybill-hook.secret"
    if secret_file is not None and not secret.is_file():
        raise NotFoundError(f"there is no file {secret_file}.", "Write the hook's secret into it first.")
    made = _make_secret(secret, folder)
    command = [sys.executable, "-I", "-c", "from waybill.cli.main import main; main()", "hook", "post-receive"]
    command += ["--server", server, "--repository", name, "--secret-file", str(secret)]
    kept = _write(hook, SCRIPT.format(mark=MARK, command=shlex.join(command)))
    if json:
        import json as encoder

        told = {"hook": str(hook), "secret_file": str(secret), "secret_made": made, "kept": kept}
        print(encoder.dumps(told))
        return
    print(f"pushes to {folder} are told to {server}.")
    if kept:
        print(f"the hook that was there runs after it, from {kept}.")
    if made:
        print(f"a fresh secret is in {secret}: give it to the server as this hook's secret.")


def _places(repo: Path) -> tuple[Path, Path]:
    """The git folder and the path of its hook, both absolute."""
    if not repo.is_dir():
        raise NotFoundError(f"there is no folder {repo}.")
    asked = ["git", "-C", str(repo), "rev-parse", "--absolute-git-dir", "--git-path", "hooks"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=20)
    except FileNotFoundError:
        raise NotFoundError("git is not installed.", "On Debian: apt install git.") from None
    lines = answer.stdout.splitlines()
    if answer.returncode or len(lines) != 2:
        said = answer.stderr.strip().splitlines() or ["no answer"]
        raise InvalidInputError(f"{repo} is no git repository: git says {said[0]!r}.")
    folder, hooks = Path(lines[0]), (repo / lines[1]).resolve()
    if not hooks.is_relative_to(folder.resolve()):
        raise InvalidInputError(
            f"git takes the hooks of {repo} from {hooks}, which other repositories may use too (core.hooksPath).",
            f"Give it hooks of its own: git -C {shlex.quote(str(repo))} config core.hooksPath hooks.",
        )
    hook = hooks / "post-receive"
    if hook.is_symlink():
        raise InvalidInputError(
            f"{hook} is a symbolic link, which something else looks after.",
            "Remove it, or call `waybill hook post-receive` from the file that it points to.",
        )
    return folder, hook


def _make_secret(path: Path, folder: Path) -> bool:
    """Write a fresh secret for whoever owns the repository; False when there is one."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32) + "\n")
        if os.geteuid() == 0:
            owner = folder.stat()
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
    return True


def _write(hook: Path, text: str) -> str:
    """Put the hook in place at once; returns where the hook that was there is kept, or nothing."""
    kept = ""
    hook.parent.mkdir(exist_ok=True)
    if hook.exists() and MARK not in hook.read_text(errors="replace"):
        place = hook.with_name("post-receive.d") / "00-before-waybill"
        if place.exists():
            raise InvalidInputError(f"{hook} is no hook of ours, and {place} is taken.", "Move one of them away.")
        place.parent.mkdir(exist_ok=True)
        shutil.copy2(hook, place)
        kept = str(place)
    fresh = hook.with_name("post-receive.waybill")
    fresh.write_text(text)
    fresh.chmod(stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
    fresh.replace(hook)
    return kept


@app.command
def create(*, forge: str, repository: str, json: Annotated[bool, cyclopts.Parameter(negative=())] = False) -> None:
    """Make an address for a forge to deliver to; its secret is shown this once.

    Args:
        forge: github, gitlab, gitea, forgejo, or generic for a bare repository.
        repository: By which the server knows the repository.
        json: Print one JSON object.
    """
    from waybill.cli.client import Client
    from waybill.wire.api import HookMade, HookWanted

    made = Client().call("POST", "/api/hooks", HookMade, HookWanted(forge=forge, repository=repository))
    if json:
        import msgspec

        print(msgspec.json.encode(made).decode())
        return
    print(f"address  {made.url}\nsecret   {made.secret}    (shown this once)")
    place = PLACES.get(forge, f"waybill hook install REPOSITORY-FOLDER --server {made.url} --name {repository}")
    print(f"next     {place}")


@app.command(name="list")
def list_(*, json: Annotated[bool, cyclopts.Parameter(negative=())] = False) -> None:
    """List the addresses that forges deliver to.

    Args:
        json: Print a JSON list.
    """
    from waybill.cli.client import Client
    from waybill.wire.api import HookInfo

    hooks = Client().call("GET", "/api/hooks", list[HookInfo])
    if json:
        import msgspec

        print(msgspec.json.encode(hooks).decode())
        return
    for hook in hooks:
        print(f"{hook.id}  {hook.forge:<8} {hook.repository:<24} {hook.created}")


@app.command
def remove(identity: str, /, *, json: Annotated[bool, cyclopts.Parameter(negative=())] = False) -> None:
    """Refuse what is delivered to an address from now on.

    Args:
        identity: Its id, as `waybill hook list` shows it.
        json: Print one JSON object.
    """
    from waybill.cli.client import Client

    Client().call("DELETE", f"/api/hooks/{identity}")
    print('{"removed": "' + identity + '"}' if json else f"{identity} is refused from now on.")
