"""``waybill init``, ``check`` and ``schema`` as a person types them, in real git repositories."""

import json
import os
import subprocess
import sys

import pytest

from support.need import need_program
from waybill.deploy.servicefile_parse import parse


@pytest.fixture
def repository(tmp_path):
    need_program("git", "git")
    folder = tmp_path / "My Shop"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "trunk")
    return folder


def git(folder, *arguments):
    subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True)


def waybill(folder, *arguments):
    code = "import sys; from waybill.cli.main import main; main(sys.argv[1:])"
    environment = os.environ | {"NO_COLOR": "1", "HOME": str(folder), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_init_writes_a_file_that_check_takes_and_says_what_it_assumed(repository):
    (repository / "go.mod").write_text("module example.org/shop\n")
    (repository / "main.go").write_text("package main\n")
    done = waybill(repository, "init")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Branch trunk deploys to production" in done.stdout
    assert "git add waybill.yml" in done.stdout
    file = parse((repository / "waybill.yml").read_bytes(), "waybill.yml")
    assert file.service == "shop"
    assert file.environments["production"].branches == ("trunk",)
    assert file.environments["production"].run.driver == "systemd"
    checked = waybill(repository, "check")
    assert checked.returncode == 0
    assert "waybill.yml is right: the service shop" in checked.stdout
    assert "production: branches trunk → hosts role: web (systemd)" in checked.stdout


def test_the_default_branch_of_the_remote_beats_the_branch_one_stands_on(repository, tmp_path):
    git(repository, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x")
    git(tmp_path, "clone", "-q", repository, tmp_path / "clone")
    git(tmp_path / "clone", "checkout", "-q", "-b", "feature")
    assert waybill(tmp_path / "clone", "init").returncode == 0
    assert "branches: [trunk]" in (tmp_path / "clone" / "waybill.yml").read_text()


def test_init_never_overwrites_without_force(repository):
    (repository / "waybill.yaml").write_text("mine")
    refused = waybill(repository, "init")
    assert refused.returncode == 6
    assert "waybill.yaml is there already" in refused.stderr and "--force" in refused.stderr
    assert (repository / "waybill.yaml").read_text() == "mine"
    told = json.loads(waybill(repository, "init", "--force", "--template", "node", "--json").stdout)
    assert (told["path"], told["service"], told["template"]) == ("waybill.yaml", "my-shop", "node")
    assert parse((repository / "waybill.yaml").read_bytes(), "waybill.yaml").service == "my-shop"
    assert not (repository / "waybill.yml").exists()  # two names in one folder would be a fault


def test_a_start_command_that_no_file_can_hold_falls_back_to_the_minimal_one(repository):
    (repository / "server.py").write_text("")
    (repository / "Procfile").write_text("web: python3 'a\x0cb\x7f'\n")
    assert waybill(repository, "init").returncode == 0
    assert waybill(repository, "check").returncode == 0


def test_templates_are_listed_and_an_unknown_one_is_refused(repository):
    listed = json.loads(waybill(repository, "init", "--list", "--json").stdout)
    assert {"python", "node", "go", "static", "minimal"} <= set(listed)
    refused = waybill(repository, "init", "--template", "cobol")
    assert refused.returncode == 5
    assert "no template 'cobol'" in refused.stderr and "python" in refused.stderr
    assert list(repository.glob("waybill.y*")) == []


def test_init_outside_a_repository_says_what_to_do(tmp_path):
    need_program("git", "git")
    refused = waybill(tmp_path, "init")
    assert refused.returncode == 5
    assert "in no git repository" in refused.stderr and "git init" in refused.stderr


def test_check_tells_every_fault_of_every_file_and_fails(repository):
    assert waybill(repository, "init", "--template", "minimal").returncode == 0
    text = (repository / "waybill.yml").read_text()
    for folder in ("api", "web", "node_modules", "ignored"):
        (repository / folder).mkdir()
        (repository / folder / "waybill.yml").write_text(text.replace("hosts:", "host:"))
    (repository / ".gitignore").write_text("ignored/\n")
    done = waybill(repository, "check")
    assert done.returncode == 2
    faults = [line for line in done.stdout.splitlines() if "did you mean 'hosts'?" in line]
    assert [line.partition(":")[0] for line in faults] == ["api/waybill.yml", "web/waybill.yml"]
    told = json.loads(waybill(repository, "check", "--json").stdout)
    assert [(fault["path"], fault["column"]) for fault in told["faults"]] == [
        ("api/waybill.yml", 5),
        ("web/waybill.yml", 5),
    ]
    assert [file["service"] for file in told["files"]] == ["my-shop"]
    (repository / "api" / "waybill.yml").write_text(text)
    (repository / "web" / "waybill.yml").unlink()
    clash = waybill(repository, "check")
    assert clash.returncode == 2
    assert "waybill.yml and api/waybill.yml both describe the service 'my-shop'" in clash.stdout
    assert waybill(repository, "check", "api/waybill.yml").returncode == 0


def test_check_notes_what_is_missing_yet(repository):
    waybill(repository, "init", "--template", "python")
    text = (repository / "waybill.yml").read_text()
    without = [line for line in text.splitlines() if "health:" not in line]
    (repository / "waybill.yml").write_text("\n".join(without).replace("# variables:", "variables:"))
    told = json.loads(waybill(repository, "check", "--json").stdout)
    assert any("no health check" in note for note in told["files"][0]["notes"])
    assert any("waybill lock production" in note for note in told["files"][0]["notes"])


def test_check_where_there_is_no_service_file(repository):
    refused = waybill(repository, "check")
    assert refused.returncode == 5
    assert "there is no waybill.yml" in refused.stderr and "waybill init" in refused.stderr


def test_schema_is_printed_as_json(repository):
    printed = json.loads(waybill(repository, "schema").stdout)
    assert printed["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    drivers = {choice["properties"]["driver"]["const"] for choice in _run(printed)["oneOf"]}
    assert {"process", "systemd"} <= drivers


def _run(printed):
    return printed["properties"]["environments"]["additionalProperties"]["properties"]["run"]
