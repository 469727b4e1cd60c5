"""Locked configuration as a person uses it: the real command, a real git checkout, real editors and signals."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.need import need_program

pytestmark = pytest.mark.flow

WAYBILL = [sys.executable, "-c", "from waybill.cli.main import main; main()"]


class Person:
    """Somebody at a terminal: a home of their own and a checkout they stand in."""

    def __init__(self, home, checkout):
        self.home, self.checkout = home, checkout
        self.memory = home / "memory"
        self.memory.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SOPS_", "GIT_", "VISUAL"))}
        self.environ = kept | {"XDG_CONFIG_HOME": str(home / "config"), "XDG_RUNTIME_DIR": str(self.memory)}

    def start(self, *arguments, **environ):
        return subprocess.Popen(
            [*WAYBILL, *arguments], cwd=self.checkout, env=self.environ | environ, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def says(self, *arguments, **environ):
        process = self.start(*arguments, **environ)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def does(self, *arguments, **environ):
        status, out, err = self.says(*arguments, **environ)
        assert status == 0, err
        return out

    def is_refused(self, *arguments, **environ):
        status, _, err = self.says(*arguments, **environ)
        assert status != 0 and "Traceback" not in err
        return err

    def git(self, *arguments):
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
        return subprocess.run(
            ["git", *identity, *arguments], cwd=self.checkout, capture_output=True, text=True, check=True
        ).stdout

    def commit(self, message="change"):
        self.git("add", "-A")
        self.git("commit", "-qm", message)

    @property
    def plain(self):
        return self.checkout / ".waybill/production.yml"

    @property
    def locked(self):
        return self.checkout / ".waybill/production.enc.yml"

    @property
    def identities(self):
        return sorted((self.home / "config/waybill/identities").rglob("*.txt"))


@pytest.fixture
def ann(tmp_path):
    need_program("git")
    checkout = tmp_path / "ann/shop"
    (checkout / ".waybill").mkdir(parents=True)
    person = Person(tmp_path / "home-ann", checkout)
    person.git("init", "-q", "-b", "main")
    person.plain.write_text("# the database\nDB_URL: postgres://app:s3cret@db/app\nPORT: 8080\n")
    return person


@pytest.fixture
def ben(ann, tmp_path):
    """A colleague with a clone, who was given the identity file."""
    ann.does("lock", "production")
    ann.commit()
    subprocess.run(["git", "clone", "-q", ann.checkout, tmp_path / "ben"], check=True)
    person = Person(tmp_path / "home-ben", tmp_path / "ben")
    shutil.copytree(ann.home / "config", person.home / "config")
    return person


def test_the_first_lock_makes_a_key_outside_of_the_checkout_and_keeps_the_plain_file_out_of_git(ann):
    told = ann.does("lock", "production")
    [identity] = ann.identities
    assert str(identity) in told and "colleague" in told
    assert stat.S_IMODE(identity.stat().st_mode) == 0o600 and stat.S_IMODE(ann.plain.stat().st_mode) == 0o600
    assert "AGE-SECRET-KEY" not in told and "AGE-SECRET-KEY-1" in identity.read_text()
    ann.commit()
    assert ann.git("ls-files").split() == [".gitignore", ".waybill/production.enc.yml"]
    assert "s3cret" not in ann.git("log", "-p") and "the database" not in ann.git("log", "-p")
    assert "says the same already" in ann.does("lock", "production") and ann.git("status", "--short") == ""


def test_a_colleague_with_the_key_unlocks_edits_and_the_diff_is_small(ann, ben):
    ben.does("unlock", "production")
    assert ben.plain.read_text() == ann.plain.read_text()
    assert stat.S_IMODE(ben.plain.stat().st_mode) == 0o600 and ben.git("status", "--short") == ""
    ben.plain.write_text(ben.plain.read_text().replace("8080", "9090"))
    ben.does("lock", "production")
    added = [line for line in ben.git("diff", "-U0").splitlines() if line.startswith("+") and line[1] != "+"]
    names = [line[1:].split(":")[0].strip() for line in added]
    assert [name for name in names if name != "lastmodified"] == ["PORT", "mac"]  # both locks may fall in one second


def test_without_the_key_nothing_opens_and_the_sentence_says_what_to_do(ann, ben):
    shutil.rmtree(ben.home / "config")
    err = ben.is_refused("unlock", "production")
    assert "is locked for age1" in err and "SOPS_AGE_KEY_FILE" in err
    assert not ben.plain.exists()


def test_ci_opens_it_with_the_variables_that_sops_knows(ann, ben):
    [identity] = ann.identities
    shutil.rmtree(ben.home / "config")
    show = ("run", "production", "--", "sh", "-c", 'echo "$PORT,$SOPS_AGE_KEY"')
    assert ben.does(*show, SOPS_AGE_KEY_FILE=str(identity)) == "8080,\n"
    secret = next(line for line in identity.read_text().splitlines() if line.startswith("AGE-SECRET-KEY"))
    assert ben.does(*show, SOPS_AGE_KEY=secret) == "8080,\n"
    assert "cannot be read" in ben.is_refused(*show, SOPS_AGE_KEY_FILE="/nonexistent")


def test_run_gives_the_variables_to_the_child_alone(ann):
    ann.does("lock", "production")
    script = "import os, sys; print(os.environ['DB_URL'], os.environ['PORT'], sys.argv[1:], os.environ['KEEP'])"
    out = ann.does("run", "production", "--", sys.executable, "-c", script, "--json", "a b", KEEP="kept")
    assert out == "postgres://app:s3cret@db/app 8080 ['--json', 'a b'] kept\n"
    assert ann.says("run", "production", "--", "sh", "-c", "exit 7")[0] == 7
    assert "no command 'nonesuch'" in ann.is_refused("run", "production", "--", "nonesuch")
    process = ann.start("run", "production", "--", "sh", "-c", "echo ready; exec sleep 60")
    try:
        assert process.stdout.readline() == "ready\n"
        assert b"s3cret" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        process.terminate()
        assert process.wait(10) == -signal.SIGTERM  # it became the command, and signals reach it
    finally:
        process.kill()
        process.communicate()


def test_a_plain_file_that_git_tracks_is_not_locked(ann):
    ann.commit("oops")
    err = ann.is_refused("lock", "production")
    assert "git tracks .waybill/production.yml in plain" in err
    assert "git rm --cached .waybill/production.yml" in err and "history still holds" in err
    assert not ann.locked.exists() and not ann.identities
    ann.git("rm", "-q", "--cached", ".waybill/production.yml")
    ann.does("lock", "production")


def test_locking_does_not_drop_what_a_colleague_locked_meanwhile(ann, ben):
    ben.does("unlock", "production")
    ann.plain.write_text(ann.plain.read_text() + "FROM_ANN: 1\n")
    ann.does("lock", "production")
    ann.commit()
    ben.plain.write_text(ben.plain.read_text() + "FROM_BEN: 2\n")
    ben.git("pull", "-q")
    before = ben.locked.read_bytes()
    err = ben.is_refused("lock", "production")
    assert "changed since it was unlocked here" in err and "FROM_ANN, FROM_BEN" in err
    assert ben.locked.read_bytes() == before
    assert "changes that are not locked" in ben.is_refused("unlock", "production")
    assert "FROM_BEN" in ben.plain.read_text()
    ben.plain.rename(ben.plain.with_name("production.yml.mine"))
    ben.does("unlock", "production")
    ben.plain.write_text(ben.plain.read_text() + "FROM_BEN: 2\n")
    ben.does("lock", "production")
    assert ben.does("run", "production", "--", "sh", "-c", "echo $FROM_ANN$FROM_BEN") == "12\n"
    assert ben.git("status", "--short").split() == ["M", ".waybill/production.enc.yml"]


def test_a_pull_is_unlocked_over_an_unchanged_plain_file(ann, ben):
    ben.does("unlock", "production")
    ann.plain.write_text(ann.plain.read_text().replace("8080", "9090"))
    ann.does("lock", "production")
    ann.commit()
    ben.git("pull", "-q")
    ben.does("unlock", "production")
    assert "PORT: 9090" in ben.plain.read_text()


def test_a_merge_conflict_is_told_as_one(ann, ben):
    for person, port in ((ann, "1"), (ben, "2")):
        person.does("unlock", "production")
        person.plain.write_text(person.plain.read_text().replace("8080", port))
        person.does("lock", "production")
        person.commit()
    with pytest.raises(subprocess.CalledProcessError):
        ben.git("pull", "-q", "--no-rebase")
    for command in ("unlock", "lock", "edit", "rotate"):
        assert "conflict markers of a merge" in ben.is_refused(command, "production", EDITOR="true")


def test_another_environments_file_is_refused(ann):
    ann.does("lock", "production")
    shutil.copy(ann.locked, ann.locked.with_name("staging.enc.yml"))
    assert "is locked for the environment production, not for staging" in ann.is_refused("unlock", "staging")
    assert not ann.plain.with_name("staging.yml").exists()


def test_an_edit_changes_the_locked_file_and_leaves_nothing_behind(ann):
    ann.does("lock", "production")
    ann.plain.unlink()
    editor = f"{sys.executable} -c \"import sys, os, pathlib as p; f = p.Path(sys.argv[1]); t = f.read_text(); \
assert oct(f.stat().st_mode)[-3:] == '600' and oct(f.parent.stat().st_mode)[-3:] == '700', 'readable by others'; \
(f.parent / 'production.yml.swp').write_text(t); f.write_text(t.replace('8080', '9090'))\""
    assert "Locked" in ann.does("edit", "production", EDITOR=editor)
    assert not ann.plain.exists() and list(ann.memory.iterdir()) == []
    assert ann.does("run", "production", "--", "sh", "-c", "echo $PORT") == "9090\n"
    assert "Nothing was changed" in ann.does("edit", "production", EDITOR="true")


@pytest.mark.parametrize(
    ("editor", "sentence"),
    [
        ("false", "ended with status 1"),
        ("sh -c 'echo A: x > $0; kill -9 $$'", "ended with status -9"),
        ("sh -c 'rm $0'", "left no text"),
        ("sh -c 'echo A: [s3cret] > $0'", "a map or list is no variable"),
        ("sh -c ': > $0'", "has no variables"),
        ("nonesuch-editor", "no editor 'nonesuch-editor'"),
    ],
)
def test_an_editor_that_dies_or_writes_nonsense_changes_nothing_and_leaves_nothing(ann, editor, sentence):
    ann.does("lock", "production")
    before = ann.locked.read_bytes()
    err = ann.is_refused("edit", "production", EDITOR=editor)
    assert sentence in err and "s3cret" not in err
    assert ann.locked.read_bytes() == before and list(ann.memory.iterdir()) == []


def start_edit(person):
    """An edit whose editor waits until it is ended, and the editor's process id."""
    process = person.start("edit", "production", EDITOR="sh -c 'echo $$ > $0.new; mv $0.new $0.pid; exec sleep 60'")
    deadline = time.monotonic() + 20
    while not (found := list(person.memory.rglob("*.pid"))):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    return process, int(found[0].read_text())


def test_an_edit_that_is_terminated_leaves_nothing(ann):
    ann.does("lock", "production")
    process, _ = start_edit(ann)
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM and list(ann.memory.iterdir()) == []


def test_what_a_killed_edit_left_in_memory_goes_with_the_next_edit(ann):
    ann.does("lock", "production")
    process, editor = start_edit(ann)
    process.kill()
    os.kill(editor, signal.SIGKILL)
    process.communicate(timeout=20)
    assert len(list(ann.memory.iterdir())) == 1
    ann.does("edit", "production", EDITOR="true")
    assert list(ann.memory.iterdir()) == []


def test_an_edit_does_not_lose_changes_that_lie_in_the_plain_file(ann):
    ann.does("lock", "production")
    ann.plain.write_text(ann.plain.read_text() + "NEW: 1\n")
    assert "changes that are not locked" in ann.is_refused("edit", "production", EDITOR="true")


def test_rotation_replaces_every_key_and_old_commits_still_open(ann, ben):
    old, old_text = ann.locked.read_bytes(), ann.identities[0].read_text()
    before = json.loads(ann.does("keys", "show", "production", "--json"))
    told = ann.does("rotate", "production")
    after = json.loads(ann.does("keys", "show", "production", "--json"))
    assert "give colleagues that file again" in told and "keys grant" in told
    assert before["recipient"] != after["recipient"] and after["earlier"] == 1 and len(ann.identities) == 1
    assert ann.identities[0].read_text() != old_text
    assert not {line for line in old.splitlines() if b"ENC[" in line} & set(ann.locked.read_bytes().splitlines())
    assert "says the same already" in ann.does("lock", "production")
    ann.commit()
    ben.git("pull", "-q")
    assert "is locked for age1" in ben.is_refused("unlock", "production")
    ann.git("checkout", "-q", "HEAD~1")
    assert ann.does("run", "production", "--", "sh", "-c", "echo $PORT") == "8080\n"
    ann.plain.write_text("PORT: 1\n")
    assert "identity that was rotated away" in ann.is_refused("lock", "production")


def test_a_lock_that_is_killed_at_any_moment_leaves_a_file_that_opens(ann):
    ann.does("lock", "production")
    start = time.perf_counter()
    ann.does("lock", "production")
    whole = time.perf_counter() - start
    for step in range(12):
        ann.plain.write_text(f"PORT: {step}\n" + "".join(f"V{n}: {'x' * 200}{step}\n" for n in range(200)))
        process = ann.start("lock", "production")
        time.sleep(whole * step / 11)  # the moment of the kill, not a wait for anything
        process.kill()
        process.communicate()
        port = ann.does("run", "production", "--", "sh", "-c", "echo $PORT").strip()
        assert port in {str(each) for each in range(step + 1)} | {"8080"}
        if ann.says("lock", "production")[0]:  # killed between the locked file and its record
            ann.plain.rename(ann.plain.with_name("production.yml.mine"))
            ann.does("unlock", "production")


def test_dotenv_is_locked_beside_yaml_elsewhere(ann):
    folder = ann.checkout / "config"
    folder.mkdir()
    (folder / "live.env").write_text("A=1\nB=two\\nlines\n")
    told = json.loads(ann.does("lock", "live", "--file", "config/live.enc.env", "--json"))
    assert told["path"] == "config/live.enc.env" and told["changed"] is True
    show = ("run", "live", "--file", "config/live.enc.env", "--", "sh", "-c", 'echo "$B"')
    assert ann.does(*show) == "two\nlines\n"
    assert "live.env" not in ann.git("status", "--short", "-uall").replace("live.enc.env", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("lock", "../x"), "no name of an environment"),
        (("lock", "staging"), "there is no .waybill/staging.yml"),
        (("unlock", "staging"), "there is no .waybill/staging.enc.yml"),
        (("lock", "production", "--file", "x.yml"), "no name of a locked file"),
        (("run", "production"), "no command to run"),
        (("keys", "grant", "production", "web1", "--service", "shop"), "no server is known here"),
    ],
)
def test_a_refusal_is_a_sentence_and_a_status(ann, arguments, sentence):
    assert sentence in ann.is_refused(*arguments)
    status, out, _ = ann.says(*arguments, "--json")
    assert status != 0 and sentence in json.loads(out)["error"]


def test_an_identity_that_others_can_read_is_refused(ann):
    ann.does("lock", "production")
    ann.identities[0].chmod(0o644)
    assert "chmod 600" in ann.is_refused("unlock", "production")


def test_the_same_variables_in_two_syntaxes_are_not_guessed(ann):
    ann.plain.with_suffix(".env").write_text("A=1\n")
    assert "several files" in ann.is_refused("lock", "production")
