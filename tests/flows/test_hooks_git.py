"""Real pushes to real bare repositories, told to a real server by the hook that ``waybill hook install`` writes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.hooks import serving
from support.need import missing
from waybill.core.ids import new_id
from waybill.deploy.model import Repository
from waybill.deploy.store import repositories
from waybill.events import outbox
from waybill.infra.keys import Keys
from waybill.web.hooks import Hooks

WAYBILL = [sys.executable, "-c", "from waybill.cli.main import main; main()"]
ENVIRONMENT = {
    **os.environ,
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_AUTHOR_NAME": "ann",
    "GIT_AUTHOR_EMAIL": "ann@example.test",
    "GIT_COMMITTER_NAME": "ann",
    "GIT_COMMITTER_EMAIL": "ann@example.test",
    "GL_USERNAME": "ann",
}


def run(*argv, cwd=None, text="", expect=0):
    done = subprocess.run(argv, cwd=cwd, env=ENVIRONMENT, capture_output=True, input=text, text=True, timeout=60)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def waybill(*argv, **more):
    return run(*WAYBILL, *map(str, argv), **more)


@pytest.fixture
def bare(tmp_path):
    run("git", "init", "-q", "--bare", "-b", "main", str(tmp_path / "app.git"))
    return tmp_path / "app.git"


@pytest.fixture
def clone(tmp_path, bare):
    folder = tmp_path / "clone"
    run("git", "init", "-q", "-b", "main", str(folder))
    run("git", "remote", "add", "origin", str(bare), cwd=folder)
    return folder


def commit(folder, text="x"):
    (folder / "file").write_text(text)
    run("git", "add", "file", cwd=folder)
    run("git", "commit", "-q", "-m", "change", cwd=folder)
    return run("git", "rev-parse", "HEAD", cwd=folder).stdout.strip()


@pytest.fixture
async def served(db, tmp_path):
    await db.write(lambda c: repositories.put_repository(c, Repository(name="team/app", url="/srv/app.git")))
    async with serving(Hooks(db, Keys(tmp_path / "data"))) as served:
        yield served


async def announced(db):
    events = await db.read(lambda c: outbox.events_since(c, 0))
    return [(event.body.branch, event.body.claimed, event.body.pusher) for event in events]


async def test_a_push_reaches_the_server_before_git_returns(served, db, bare, clone):
    nowhere = ["--server", "http://127.0.0.1:1/hooks/x", "--name", "team/app", "--json"]
    made = json.loads(waybill("hook", "install", bare, *nowhere).stdout)
    secret_file = Path(made["secret_file"])
    assert made["secret_made"] is True
    assert secret_file.stat().st_mode & 0o777 == 0o600
    secret = secret_file.read_text().strip()
    hook, _ = await served.hooks.add("generic", "team/app", "test", secret)
    address = f"http://127.0.0.1:{served.port}/hooks/{hook}"
    again = waybill("hook", "install", bare, "--server", address, "--name", "team/app")
    assert secret not in again.stdout + (bare / "hooks/post-receive").read_text()
    assert secret_file.read_text().strip() == secret

    first = commit(clone)
    run("git", "tag", "v1", cwd=clone)
    done = await asyncio.to_thread(run, "git", "push", "-q", "origin", "main", "v1", "main:refs/heads/b", cwd=clone)
    assert "told the server of main, v1, b" in done.stderr
    assert sorted(await announced(db)) == [("b", first, "ann"), ("main", first, "ann")]
    await asyncio.to_thread(run, "git", "push", "-q", "origin", ":refs/heads/b", cwd=clone)
    assert (await announced(db))[-1] == ("b", "", "ann")


async def test_a_refusal_is_told_to_who_pushes_and_the_push_stands(served, bare, clone, tmp_path):
    hook, _ = await served.hooks.add("generic", "team/app", "test")
    (tmp_path / "wrong").write_text("some other secret\n")
    address = f"http://127.0.0.1:{served.port}/hooks/{hook}"
    secret = ["--secret-file", tmp_path / "wrong"]
    waybill("hook", "install", bare, "--server", address, "--name", "team/app", *secret)
    head = commit(clone)
    done = await asyncio.to_thread(run, "git", "push", "-q", "origin", "main", cwd=clone)
    assert "answered 401: the signature in Waybill-Signature does not fit" in done.stderr
    assert "everybody on this machine can read" in done.stderr
    assert "some other secret" not in done.stderr
    assert run("git", "rev-parse", "main", cwd=bare).stdout.strip() == head


def test_a_server_that_is_away_does_not_fail_the_push(bare, clone):
    waybill("hook", "install", bare, "--server", "http://127.0.0.1:1/hooks/x", "--name", "team/app")
    commit(clone)
    start = time.monotonic()
    done = run("git", "push", "-q", "origin", "main", cwd=clone)
    assert time.monotonic() - start < 5
    assert "127.0.0.1:1 does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_accepts_and_says_nothing_holds_a_push_for_seconds_only(bare, clone):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/hooks/x"
        waybill("hook", "install", bare, "--server", address, "--name", "team/app")
        commit(clone)
        start = time.monotonic()
        done = run("git", "push", "-q", "origin", "main", cwd=clone)
    assert "does not answer" in done.stderr
    assert time.monotonic() - start < 7


def test_a_hook_that_was_there_keeps_running_with_the_same_lines(bare, clone):
    hook = bare / "hooks/post-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ncat > '{bare}/seen'\n")
    hook.chmod(0o755)
    server = ["--server", "http://127.0.0.1:1/hooks/x", "--name", "team/app"]
    assert "00-before-waybill" in waybill("hook", "install", bare, *server).stdout
    waybill("hook", "install", bare, *server)
    head = commit(clone)
    run("git", "push", "-q", "origin", "main", cwd=clone)
    assert (bare / "seen").read_text() == f"{'0' * 40} {head} refs/heads/main\n"
    assert stat.S_IMODE(hook.stat().st_mode) == 0o755


def test_the_hook_of_an_ordinary_repository_and_of_one_without_a_folder_of_hooks(clone):
    for file in (clone / ".git/hooks").glob("*"):
        file.unlink()
    (clone / ".git/hooks").rmdir()
    waybill("hook", "install", clone, "--server", "http://127.0.0.1:1/hooks/x", "--name", "a b's")
    assert os.access(clone / ".git/hooks/post-receive", os.X_OK)
    lines = f"{'0' * 40} {'b' * 40} refs/heads/$(touch x)\n"
    done = run(".git/hooks/post-receive", cwd=clone, text=lines)
    assert "does not answer" in done.stderr
    assert not (clone / "x").exists()


def other_address(_bare):
    return {"--server": "waybill.example"}


def address_of_no_hook(_bare):
    return {"--server": "https://waybill.example"}


def no_secret_file(_bare):
    return {"--secret-file": "/nonexistent/secret"}


def no_repository(bare):
    (bare / "HEAD").unlink()
    return {}


def hooks_elsewhere(bare):
    run("git", "config", "core.hooksPath", "/etc", cwd=bare)
    return {}


def linked_hook(bare):
    (bare / "hooks").mkdir(exist_ok=True)
    (bare / "hooks/post-receive").symlink_to("/nonexistent")
    return {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_address, "is no address of a hook"),
        (address_of_no_hook, "is no address of a hook"),
        (no_secret_file, "there is no file"),
        (no_repository, "is no git repository"),
        (hooks_elsewhere, "core.hooksPath"),
        (linked_hook, "symbolic link"),
    ],
)
def test_what_cannot_be_installed_is_refused_with_a_sentence(bare, change, said):
    options = {"--server": "http://127.0.0.1:1/hooks/x", "--name": "n", **change(bare)}
    argv = [part for pair in options.items() for part in pair]
    done = subprocess.run([*WAYBILL, "hook", "install", bare, *argv], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode in (2, 5)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (bare / "waybill-hook.secret").exists()


def test_wrong_arguments_show_how_it_is_called():
    for argv in ([], ["--server", "x"], ["--help"], ["--server=ftp://x/y", "--repository=r", "--secret-file=s"]):
        done = run(*WAYBILL, "hook", "post-receive", *argv, expect=2)
        assert "Usage: waybill hook post-receive" in done.stderr


def test_lines_that_are_no_branch_are_passed_over():
    from waybill.cli.post_receive import read_updates

    lines = [b"a b refs/notes/x\n", b"nonsense\n", b"", b"a b refs/heads/\xff\n", b"a b refs/heads/m n\n"]
    assert read_updates(lines) == [{"ref": "refs/heads/m n", "before": "a", "after": "b"}]


def test_the_hook_imports_no_more_than_the_standard_library():
    code = "import sys; from waybill.cli.main import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    argv = ["--server", "http://127.0.0.1:1/hooks/x", "--repository", "r", "--secret-file", os.devnull]
    done = run(sys.executable, "-I", "-c", code, "hook", "post-receive", *argv)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert not loaded & {"cyclopts", "httpx2", "msgspec", "rich", "attrs", "cryptography"}


def test_root_gives_a_fresh_secret_to_whoever_owns_the_repository(bare):
    if os.geteuid() != 0:
        missing("root, to have a repository of somebody else")
    for path in (bare, *bare.rglob("*")):
        os.chown(path, 65534, 65534)
    trust = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    environment = {**ENVIRONMENT, **trust}
    argv = [*WAYBILL, "hook", "install", str(bare), "--server", "http://127.0.0.1:1/hooks/x", "--name", new_id()]
    subprocess.run(argv, env=environment, check=True, capture_output=True)
    assert (bare / "waybill-hook.secret").stat().st_uid == 65534
