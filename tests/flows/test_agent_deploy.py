"""What a host does with what it is told: real keeper, git and TLS, against the strict fake server."""

import asyncio
import contextlib
import json
import os
from pathlib import Path

import pytest

from support.agent_fixtures import host, repository, server  # noqa: F401
from support.agents import asked, eventually, git, manifest
from support.fake_server import Fault

pytestmark = pytest.mark.flow

# ruff: noqa: F811 - fixtures are named like their arguments


def releases(host):
    folder = host.home.service("hello", "production").releases
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


async def live(server, repository, sequence=1, version="one", **other):
    commit = repository.version(version, **other)
    await server.desire(manifest(commit, sequence))
    await server.reported("live", sequence)
    return commit


async def test_a_commit_goes_live_and_the_next_one_takes_over(server, repository, host):
    await host.start()
    first = await live(server, repository)
    assert await asked(repository.port) == f"one - {first}"
    second = await live(server, repository, 2, "two")
    assert await asked(repository.port) == f"two - {second}"
    folder = host.home.service("hello", "production")
    assert (folder.current / "REVISION").read_text().strip() == second
    await eventually(lambda: not folder.live().retiring)
    assert server.facts[0].version and "process" in server.facts[0].drivers


async def test_the_release_is_the_commit_byte_for_byte(server, repository, host):
    files = {
        ".gitattributes": b"*.txt text eol=crlf\nsecret.txt export-ignore\n*.c ident\n",
        "a/unix.txt": b"one\ntwo\n",
        "secret.txt": b"still here",
        "a/b/program.c": b"/* $Id$ */\n",
        "empty": b"",
        "with space \xc3\xa9": b"\x00\xff",
    }
    (repository.path / "link").symlink_to("a/unix.txt")
    await host.start()
    await live(server, repository, files=files)
    release = host.home.service("hello", "production").current.resolve()
    for name, content in files.items():
        assert (release / name).read_bytes() == content
    assert str((release / "link").readlink()) == "a/unix.txt"
    assert os.access(release / "app.py", os.R_OK) and not (release / "app.py").stat().st_mode & 0o222
    assert (release / "shared").resolve() == host.home.service("hello", "production").shared


async def test_a_broken_version_changes_nothing_for_users(server, repository, host):
    await host.start()
    first = await live(server, repository)
    broken = repository.version("two", status=500)
    await server.desire(manifest(broken, 2))
    report = await server.reported("failed", 2)
    assert "500" in report.reason + report.evidence
    assert report.live_sequence == 1 and report.live_commit == first
    assert await asked(repository.port) == f"one - {first}"
    assert len(releases(host)) == 1
    third = await live(server, repository, 3, "three")
    assert await asked(repository.port) == f"three - {third}"


async def test_the_same_content_is_not_started_again(server, repository, host):
    await host.start()
    commit = await live(server, repository)
    await server.desire(manifest(commit, 2))
    await server.reported("live", 2)
    assert repository.starts.read_text().split() == ["one"]
    assert len(releases(host)) == 1


async def test_what_is_not_on_the_hosts_own_list_is_refused(server, repository, host):
    await host.start()
    commit = repository.version("one")
    await server.desire(manifest(commit, 1, service="other"))
    report = await server.reported("refused", 1, service="other")
    assert "own list allows hello/*" in report.reason
    assert not any("/v1/commits" in request for request in server.requests)


async def test_a_sequence_never_goes_back(server, repository, host):
    await host.start()
    commit = await live(server, repository, 5)
    await server.desire(manifest(repository.version("old"), 4))
    report = await server.reported("refused", 4)
    assert "never goes back" in report.reason and report.live_sequence == 5
    assert await asked(repository.port) == f"one - {commit}"


async def test_a_server_that_lost_its_past_stops_nothing(server, repository, host):
    await host.start()
    commit = await live(server, repository, 5)
    await server.stop()
    server.forget()
    await server.start()
    report = await server.reported("live", 5, live_commit=commit)
    assert await asked(repository.port) == f"one - {commit}"
    await server.desire(manifest(repository.version("young"), 1))
    await server.reported("refused", 1)
    await server.desire(manifest(repository.version("next"), report.live_sequence + 1))
    await server.reported("live", 6)


async def test_an_older_copy_of_the_database_is_noticed(server, repository, host):
    await host.start()
    await live(server, repository, 1)
    await server.abandon("hello", "production", 0)
    await server.watch("w", "hello", "production")
    await server.stop()
    server.revision = 0
    server.messages.clear()
    await server.start()
    await eventually(lambda: server.streams >= 3)
    await live(server, repository, 2, "two")


async def test_doubled_and_late_messages_change_nothing(server, repository, host):
    await host.start()
    commit = await live(server, repository)
    for _ in range(50):
        server.messages[("again", _)] = (server.revision, server.messages["desired", "hello/production"][1])
    server.drop()
    await eventually(lambda: server.streams >= 2)
    await server.desire(manifest(commit, 2))
    await server.reported("live", 2)
    assert repository.starts.read_text().split() == ["one"]


async def test_a_newer_commit_supersedes_one_in_progress(server, repository, host):
    await host.start()
    first = await live(server, repository)
    slow = repository.version("slow", extra=BEFORE % "[sleep, '60']")
    await server.desire(manifest(slow, 2))
    await server.reported("preparing", 2)
    await live(server, repository, 3, "three")
    assert not any(report.state == "live" and report.sequence == 2 for report in server.reports)
    assert "slow" not in repository.starts.read_text().split()
    assert first != slow


BEFORE = """
    before: [prepare]
functions:
  prepare: {command: %s, timeout: 70s}
"""


async def test_cancel_stops_what_is_coming_up_and_nothing_else(server, repository, host):
    await host.start()
    first = await live(server, repository)
    slow = repository.version("slow", extra=BEFORE % "[sleep, '61']")
    await server.desire(manifest(slow, 2))
    await server.reported("preparing", 2)
    await server.abandon("hello", "production", 2)
    report = await server.reported("abandoned", 2)
    assert report.live_sequence == 1
    assert await asked(repository.port) == f"one - {first}"
    assert len(releases(host)) == 1
    assert "sleep\x0061" not in commands(), "the function's process is gone"


def commands():
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(entry.read_text())
    return "\n".join(found)


async def test_only_a_removal_takes_a_service_away(server, repository, host):
    await host.start()
    await live(server, repository)
    await server.remove("hello", "production")
    await server.reported("removed", 1)
    assert await asked(repository.port) == ""
    folder = host.home.service("hello", "production")
    assert not folder.releases.exists() and folder.live() is None
    await server.desire(manifest(repository.version("late"), 1))
    await server.reported("refused", 1)
    await live(server, repository, 2, "back")


async def test_hold_leaves_everything_as_it_is(server, repository, host):
    await host.start()
    first = await live(server, repository)
    folder = host.home.service("hello", "production")
    (folder.path / "hold").touch()
    second = repository.version("two")
    await server.desire(manifest(second, 2))
    assert "hold" in (await server.reported("held", 2)).reason
    assert await asked(repository.port) == f"one - {first}"
    (folder.path / "hold").unlink()
    host.poke()
    await server.reported("live", 2)
    assert await asked(repository.port) == f"two - {second}"


async def test_functions_run_in_their_place(server, repository, host, tmp_path):
    log = tmp_path / "log"
    extra = f"""    before: [first]
    after: [last]
    failed: [sorry]
functions:
  first: {{command: [sh, -c, 'echo "before $WAYBILL_COMMIT" >> {log}']}}
  last: {{command: [sh, -c, 'echo after >> {log}']}}
  sorry: {{command: [sh, -c, 'echo failed >> {log}']}}
"""
    await host.start()
    commit = await live(server, repository, extra=extra)
    await eventually(lambda: log.read_text().split("\n")[:2] == [f"before {commit}", "after"])
    await server.desire(manifest(repository.version("bad", status=500, extra=extra), 2))
    await server.reported("failed", 2)
    assert log.read_text().split("\n")[2:4][1] == "failed"


async def test_a_failing_function_keeps_the_old_version(server, repository, host):
    await host.start()
    first = await live(server, repository)
    bad = repository.version("two", extra=BEFORE % "[sh, -c, 'echo no such table; exit 3']")
    await server.desire(manifest(bad, 2))
    report = await server.reported("failed", 2)
    assert "prepare" in report.reason and "status 3" in report.reason and "no such table" in report.evidence
    assert await asked(repository.port) == f"one - {first}"
    assert "two" not in repository.starts.read_text().split()


async def test_only_one_host_runs_what_runs_once(server, repository, host, tmp_path):
    extra = f"""    before: [once]
functions:
  once: {{command: [touch, {tmp_path}/ran], once: true}}
"""
    await host.start()
    await server.desire(manifest(repository.version("one", extra=extra), 1), once=False)
    await server.reported("live", 1)
    assert not (tmp_path / "ran").exists()
    await server.desire(manifest(repository.version("two", extra=extra), 2), once=True)
    await server.reported("live", 2)
    assert (tmp_path / "ran").exists()


async def test_five_releases_are_kept(server, repository, host):
    await host.start()
    for sequence in range(1, 8):
        await live(server, repository, sequence, f"v{sequence}")
    await eventually(lambda: len(releases(host)) == 5)
    current = host.home.service("hello", "production").current.resolve().name
    assert current == releases(host)[-1]


async def test_network_faults_are_sat_out(server, repository, host):
    commit = repository.version("one")
    server.faults = [
        Fault("POST /v1/report", "before", 2),
        Fault("POST /v1/report", "after", 2),
        Fault("POST /v1/report", "503", 1),
        Fault("GET /v1/commits", "before"),
        Fault("GET /v1/commits", "cut"),
        Fault("GET /v1/commits", "503"),
    ]
    await host.start()
    await server.desire(manifest(commit, 1))
    await server.reported("live", 1, 40)
    assert await asked(repository.port) == f"one - {commit}"


async def test_a_damaged_pack_is_refused_with_a_sentence(server, repository, host):
    server.faults = [Fault("GET /v1/commits", "corrupt")]
    await host.start()
    await server.desire(manifest(repository.version("one"), 1))
    report = await server.reported("failed", 1)
    assert "index-pack" in report.reason and "nothing of it is used" in report.reason
    assert releases(host) == []
    await live(server, repository, 2, "two")


async def test_a_commit_that_is_gone_is_said_so(server, repository, host):
    await host.start()
    await server.desire(manifest("0" * 39 + "1", 1))
    report = await server.reported("failed", 1)
    assert "is gone" in report.reason


async def test_a_pack_of_another_commit_is_not_taken(server, repository, host, monkeypatch):
    good, other = repository.version("good"), repository.version("other")
    import support.fake_server as fake

    real = fake.pack_of
    monkeypatch.setattr(fake, "pack_of", lambda path, commit: real(path, other))
    await host.start()
    await server.desire(manifest(good, 1))
    report = await server.reported("failed", 1)
    assert "nothing of it is used" in report.reason


async def test_submodules_lfs_and_links_outside_are_refused(server, repository, host):
    await host.start()
    repository.version("one")
    head = git("rev-parse", "HEAD", cwd=repository.path)
    git("update-index", "--add", "--cacheinfo", f"160000,{head},vendor/lib", cwd=repository.path)
    git("commit", "-q", "-m", "submodule", cwd=repository.path)
    await server.desire(manifest(git("rev-parse", "HEAD", cwd=repository.path), 1))
    assert "vendor/lib is a submodule" in (await server.reported("failed", 1)).reason
    git("reset", "-q", "--hard", head, cwd=repository.path)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    # No filter program here, so git stores the pointer as it is.
    lfs = repository.version("lfs", files={".gitattributes": b"*.bin filter=lfs -text\n", "big.bin": pointer})
    await server.desire(manifest(lfs, 2))
    assert "big.bin is kept in git LFS" in (await server.reported("failed", 2)).reason
    git("reset", "-q", "--hard", head, cwd=repository.path)
    (repository.path / "out").symlink_to("../../../../etc/passwd")
    await server.desire(manifest(repository.version("link"), 3))
    assert "the link out leaves the release" in (await server.reported("failed", 3)).reason
    assert releases(host) == []


async def test_a_service_file_that_does_not_fit_is_refused(server, repository, host):
    await host.start()
    commit = repository.version("one")
    await server.desire(manifest(commit, 1, environment="staging"))
    report = await server.reported("failed", 1, environment="staging")
    assert "no environment 'staging'" in report.reason and "production" in report.reason
    await server.desire(manifest(commit, 1, locked="sha256:" + "0" * 64))
    assert "locked variables" in (await server.reported("failed", 1, environment="production")).reason
    repository.version("two", top="colour: red\n")
    await server.desire(manifest(git("rev-parse", "HEAD", cwd=repository.path), 2))
    assert "colour" in (await server.reported("failed", 2)).reason


async def test_log_lines_reach_a_watcher(server, repository, host):
    await host.start()
    await live(server, repository)
    await asked(repository.port)
    await server.watch("w1", "hello", "production", lines=10)
    await server.until(lambda: "w1" in server.ended)
    assert any("asked /" in line for line in server.logs["w1"])
    await server.watch("w2", "hello", "production", lines=0, seconds=2)
    await asyncio.sleep(0.3)
    await asked(repository.port)
    await server.until(lambda: any("asked /" in line for line in server.logs.get("w2", [])))
    await server.until(lambda: "w2" in server.ended)
    await server.watch("w3", "nothing", "production")
    await server.until(lambda: "w3" in server.ended)
    assert "ever ran here" in server.logs["w3"][0]


async def test_a_skewed_clock_is_reported_and_not_fatal(server, repository, host):
    server.skew = 3600.0
    await host.start()
    await live(server, repository)
    assert host.link.skew > 3500


async def test_unknown_messages_are_skipped(server, repository, host):
    await host.start()
    await server.say("odd", lambda revision: {"type": "dance", "revision": revision})
    await server.say("bad", lambda revision: {"type": "desired", "revision": revision, "rollout": "x", "manifest": "{"})
    await live(server, repository)


async def test_a_silent_connection_is_given_up(server, repository, host, monkeypatch):
    server.heartbeat = 1
    await host.start()
    await eventually(lambda: server.streams == 1)
    server.heartbeat = 1000  # the next heartbeat would come in 500 s
    await eventually(lambda: server.streams == 2, 20)


def test_records_are_plain_json(tmp_path):
    from waybill.agent.state import Folder, Told

    folder = Folder(tmp_path / "hello@production")
    folder.store(Told(revision=3))
    assert json.loads((folder.path / "desired.json").read_text())["revision"] == 3
