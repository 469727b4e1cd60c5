"""The overview: fast, true to the commands' own help, and each command knows --json."""

import importlib
import inspect
import os
import statistics
import subprocess
import sys
import time

import cyclopts
import pytest

from waybill.cli.main import COMMANDS, overview

RUN = "from waybill.cli.main import main; main()"


def wall(*arguments):
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def test_help_imports_nothing_heavy():
    asked = [sys.executable, "-X", "importtime", "-c", RUN, "--help"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    heavy = {"cyclopts", "rich", "msgspec", "httpx2", "asyncio", "cryptography", "litestar", "sqlalchemy"}
    assert not heavy & {name.partition(".")[0] for name in imported}
    assert {name for name in imported if name.startswith("waybill")} <= {"waybill", "waybill.cli", "waybill.cli.main"}


def test_help_costs_little_beside_an_empty_program():
    empty, ours = [], []
    for _ in range(7):
        empty.append(wall("-c", "pass"))
        ours.append(wall("-c", RUN, "--help"))
    assert statistics.median(ours) - statistics.median(empty) < 0.1


def test_the_overview_names_every_command_on_a_line_of_its_own():
    text = overview()
    for name, (_, summary) in COMMANDS.items():
        assert any(line.split() == [name, *summary.split()] for line in text.splitlines())


def target(name):
    module, _, attribute = COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_sentence_of_a_command_is_the_one_of_its_own_help(name):
    found = target(name)
    own = found.help if isinstance(found, cyclopts.App) else inspect.getdoc(found).split("\n\n")[0]
    assert " ".join(own.split()) == COMMANDS[name][1]


def functions(found):
    if not isinstance(found, cyclopts.App):
        return [found]
    inner = [found.default_command] if found.default_command else []
    for name in found:
        if not name.startswith("-"):
            inner += functions(found[name])
    return inner


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_knows_json(name):
    for function in functions(target(name)):
        if function.__name__ in ("post_receive", "_main"):
            continue  # git runs it; it has nothing to tell a program
        assert "json" in inspect.signature(function).parameters, function


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_can_be_read(name):
    done = subprocess.run(
        [sys.executable, "-c", RUN, name, "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "100", "PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0, done.stderr
    assert f"waybill {name}" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_commands_and_are_sound(shell, tmp_path):
    done = subprocess.run([sys.executable, "-c", RUN, "completion", shell], capture_output=True, text=True, check=True)
    for name in COMMANDS:
        assert name in done.stdout
    if shell == "bash":
        script = tmp_path / "waybill.bash"
        script.write_text(done.stdout)
        subprocess.run(["bash", "-n", script], check=True)
        typed = (
            f"source {script}; COMP_WORDS=(waybill roll); COMP_CWORD=1; COMP_LINE='waybill roll'; COMP_POINT=12; "
            "$(complete -p waybill | sed 's/.*-F \\([^ ]*\\).*/\\1/') waybill roll waybill; echo ${COMPREPLY[@]}"
        )
        asked = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, check=False)
        assert set(asked.stdout.split()) == {"rollback", "rollout"}


WRONG = [
    ([], 0, "Usage: waybill COMMAND"),
    (["statu"], 5, "there is no command 'statu'.\n  Did you mean 'status'?"),
    (["status", "--nope"], 2, "unknown option: --nope.\n  waybill status --help says more."),
    (
        ["grant", "hello/production", "--branch", "main"],
        2,
        "--repository is missing.\n  waybill grant --help says more.",
    ),
    (["token", "create", "ci"], 2, "--role is missing.\n  waybill token create --help says more."),
    (["token", "create", "ci", "--role", "boss"], 2, "there is no role 'boss'.\n  Roles are viewer, deployer,"),
    (["enroll", "--within", "soon"], 2, "'soon' is no length of time.\n  Write 30m, 12h or 7d."),
    (["enroll", "--label", "web"], 2, "'web' is no label.\n  Labels are written name=value"),
    (["rollback", "hello"], 2, "'hello' names no service in an environment.\n  Write it as hello/production."),
    (["status"], 3, "no server is known here.\n  waybill login URL, or set WAYBILL_SERVER and WAYBILL_TOKEN."),
    (["login", "example.org"], 2, "'example.org' is no address of a server."),
    (["serve", "--port", "many"], 2, 'invalid value for --port: unable to convert "many" into int.'),
]


@pytest.mark.parametrize(("words", "status", "sentence"), WRONG)
def test_wrong_use_is_told_in_sentences(words, status, sentence, tmp_path):
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == status
    assert sentence in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
