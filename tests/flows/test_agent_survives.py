"""What becomes of services when the agent, the machine, the disk or the server fails."""

import asyncio
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from support.agent_fixtures import host, machine, repository, server  # noqa: F401
from support.agents import Host, asked, end_services, eventually, manifest
from support.fake_server import FakeServer, Fault, digest
from support.need import missing
from waybill.vault import identity, sops

# ruff: noqa: F811 - fixtures are named like their arguments

SECRET = "correct horse battery staple"


def starts(repository):
    return repository.starts.read_text().split() if repository.starts.exists() else []


@pytest.mark.flow
async def test_an_agent_killed_at_any_moment_converges_and_starts_nothing_twice(server, repository, machine):
    commit = repository.version("v0")
    await machine.start()
    await server.desire(manifest(commit, 1))
    await server.reported("live", 1)
    moments = [0.0, 0.03, 0.06, 0.09, 0.12, 0.15, 0.18, 0.24]
    for number, moment in enumerate(moments, 1):
        commit = repository.version(f"v{number}")
        await server.desire(manifest(commit, number + 1))
        await asyncio.sleep(moment)
        await machine.kill()
        assert (await asked(repository.port)).startswith("v"), "somebody serves while no agent runs"
        await machine.start()
        await server.reported("live", number + 1)
        assert await asked(repository.port) == f"v{number} - {commit}"
    folder = machine.home.service("hello", "production")
    await eventually(lambda: not folder.live().retiring)
    assert starts(repository) == [f"v{number}" for number in range(len(moments) + 1)]
    await eventually(lambda: len(list(folder.releases.iterdir())) == 5)


@pytest.mark.flow
@pytest.mark.parametrize("stage", ["fetching", "preparing", "probing"])
async def test_an_agent_killed_in_the_middle_of_a_step_takes_it_up_again(server, repository, machine, stage, tmp_path):
    first = repository.version("one")
    await machine.start()
    await server.desire(manifest(first, 1))
    await server.reported("live", 1)
    extra, breakage = "", ""
    if stage == "fetching":
        server.faults = [Fault("GET /v1/commits", "stall")]
    elif stage == "preparing":
        extra = (
            "    before: [wait]\nfunctions:\n"
            f"  wait: {{command: [sh, -c, 'until test -e {tmp_path}/go; do sleep 0.05; done'], timeout: 60s}}\n"
        )
    else:
        breakage = f"import time\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.05)"
    second = repository.version("two", extra=extra, breakage=breakage)
    await server.desire(manifest(second, 2))
    await server.reported(stage, 2)
    await machine.kill()
    assert await asked(repository.port) == f"one - {first}"
    server.released.set()
    await machine.start()
    await server.reported(stage, 2)
    (tmp_path / "go").touch()
    await server.reported("live", 2)
    assert await asked(repository.port) == f"two - {second}"
    assert starts(repository) == ["one", "two"]


@pytest.mark.flow
async def test_a_restarted_agent_restarts_no_service(server, repository, machine):
    commit = repository.version("one")
    await machine.start()
    await server.desire(manifest(commit, 1))
    await server.reported("live", 1)
    for _ in range(2):
        await machine.stop()
        assert await asked(repository.port) == f"one - {commit}"
        server.reports.clear()
        await machine.start()
        await server.reported("live", 1)
    assert starts(repository) == ["one"]


def lock(repository, recipient, sealed_to):
    """A locked file in the repository; returns its digest and the sealed identity."""
    key = identity.new()
    plain = sops.read(f"SECRET: {SECRET}\n".encode(), "plain.yml")
    locked = sops.lock(plain, [recipient or key.recipient], None, "2026-11-20T12:00:00Z")
    path = repository.path / ".waybill/production.enc.yml"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(locked)
    return digest(locked), identity.seal(identity.write((key,), "production").encode(), sealed_to)


VARIABLES = "    variables: .waybill/production.enc.yml\n"


async def test_locked_variables_reach_the_service_and_no_disk(server, repository, host, tmp_path):
    name, sealed = lock(repository, None, server.recipients["web-1"])
    extra = f"    before: [note]\nfunctions:\n  note: {{command: [sh, -c, 'echo \"$SECRET\" > {tmp_path}/noted']}}\n"
    commit = repository.version("one", variables=VARIABLES, extra=extra)
    await host.start()
    await server.desire(manifest(commit, 1, locked=name), sealed=sealed)
    await server.reported("live", 1)
    assert await asked(repository.port) == f"one {SECRET} {commit}"
    assert (tmp_path / "noted").read_text().strip() == SECRET
    secrets = Path(host.home.service("hello", "production").live().placed.release.secrets)
    assert SECRET in secrets.read_text() and secrets.stat().st_mode & 0o777 == 0o600
    assert os.statvfs(secrets).f_blocks and b"tmpfs" in subprocess.check_output(["stat", "-f", "-c%T", secrets])
    found = subprocess.run(["grep", "-rlF", SECRET, host.home.root], capture_output=True, text=True)
    assert found.stdout == "", "nothing decrypted lies on the disk"
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert SECRET.encode() not in entry.read_bytes()
        except OSError:
            continue
    await server.remove("hello", "production")
    await server.reported("removed", 1)
    assert not secrets.exists()


async def test_a_locked_file_that_will_not_open_changes_nothing(server, repository, host):
    first = repository.version("one")
    await host.start()
    await server.desire(manifest(first, 1))
    await server.reported("live", 1)
    name, sealed = lock(repository, identity.new().recipient, server.recipients["web-1"])
    commit = repository.version("two", variables=VARIABLES)
    await server.desire(manifest(commit, 2, locked=name), sealed=sealed)
    report = await server.reported("failed", 2)
    assert "production.enc.yml" in report.reason
    await server.desire(manifest(commit, 3, locked=name))
    assert "was not granted the key" in (await server.reported("failed", 3)).reason
    await server.desire(manifest(commit, 4, locked="sha256:" + "0" * 64), sealed=sealed)
    assert "is not the locked file" in (await server.reported("failed", 4)).reason
    assert await asked(repository.port) == f"one - {first}"
    assert starts(repository) == ["one"]


@pytest.mark.flow
async def test_a_rebooted_machine_serves_again_without_the_server(server, repository, machine):
    name, sealed = lock(repository, None, server.recipients["web-1"])
    commit = repository.version("one", variables=VARIABLES)
    await machine.start()
    await server.desire(manifest(commit, 1, locked=name), sealed=sealed)
    await server.reported("live", 1)
    secrets = Path(machine.home.service("hello", "production").live().placed.release.secrets)
    await machine.kill()
    end_services(machine.home)
    assert not secrets.exists(), "as after a reboot"
    await server.stop()
    await eventually(lambda: not asked_now(repository))
    status, _, errors = await machine.waybill("agent", "boot")
    assert status == 0, errors
    assert await eventually(lambda: asked_now(repository)) == f"one {SECRET} {commit}"


def asked_now(repository):
    from support.agents import ask

    return ask(repository.port)


@pytest.mark.flow
@pytest.mark.parametrize("running", [True, False])
async def test_a_person_goes_back_on_the_host_without_the_server(server, repository, machine, running):
    first = repository.version("one")
    await machine.start()
    await server.desire(manifest(first, 1))
    await server.reported("live", 1)
    second = repository.version("two")
    await server.desire(manifest(second, 2))
    await server.reported("live", 2)
    await server.stop()
    if not running:
        await machine.kill()
    status, output, errors = await machine.waybill("agent", "rollback", "hello/production", "--json")
    assert status == 0, errors
    assert json.loads(output) == {"service": "hello/production", "live_commit": first}
    assert await asked(repository.port) == f"one - {first}"
    status, output, _ = await machine.waybill("agent", "status", "--json")
    (row,) = json.loads(output)["services"]
    assert (row["state"], row["sequence"], row["live_sequence"]) == ("abandoned", 2, 1)
    await server.start()
    if not running:
        await machine.start()
    report = await server.reported("abandoned", 2, live_sequence=1)
    assert "went back" in report.reason
    third = repository.version("three")
    await server.desire(manifest(third, 3))
    await server.reported("live", 3)
    assert await asked(repository.port) == f"three - {third}"


@pytest.mark.flow
async def test_a_person_holds_and_releases_a_service(server, repository, machine):
    first = repository.version("one")
    await machine.start()
    await server.desire(manifest(first, 1))
    await server.reported("live", 1)
    assert (await machine.waybill("agent", "hold", "hello"))[0] == 0
    second = repository.version("two")
    await server.desire(manifest(second, 2))
    await server.reported("held", 2)
    assert "held 2" in (await machine.waybill("agent", "status"))[1]
    assert await asked(repository.port) == f"one - {first}"
    assert (await machine.waybill("agent", "release", "hello/production"))[0] == 0
    await server.reported("live", 2)
    status, output, _ = await machine.waybill("agent", "logs", "hello/production")
    assert status == 0 and "asked /" in output
    status, _, errors = await machine.waybill("agent", "hold", "nothing/production")
    assert status == 5 and "never told" in errors
    status, _, errors = await machine.waybill("agent", "run")
    assert status == 6 and "already runs" in errors


async def test_a_full_disk_fails_with_a_sentence_and_the_old_version_serves(server, repository, tmp_path):
    if os.geteuid() != 0:
        missing("root, to mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small])
    if mounted.returncode:
        missing("the right to mount a tmpfs")
    from support.agents import InProcess

    host = InProcess(small)
    try:
        await host.enroll(server)
        await host.start()
        first = repository.version("one")
        await server.desire(manifest(first, 1))
        await server.reported("live", 1)
        big = repository.version("big", files={"big.bin": os.urandom(6 << 20)})
        await server.desire(manifest(big, 2))
        report = await server.reported("failed", 2)
        assert "No space left" in report.reason or "space" in report.reason, report.reason
        assert await asked(repository.port) == f"one - {first}"
        (repository.path / "big.bin").unlink()
        third = repository.version("three")
        await server.desire(manifest(third, 3))
        await server.reported("live", 3)
    finally:
        await host.close()
        await eventually(lambda: subprocess.run(["umount", small], stderr=subprocess.DEVNULL).returncode == 0)


async def test_an_impostor_with_another_authority_is_not_heard(server, repository, host, tmp_path):
    await host.start()
    commit = repository.version("one")
    await server.desire(manifest(commit, 1))
    await server.reported("live", 1)
    await server.stop()
    impostor = FakeServer(tmp_path / "impostor", {"team/hello": repository.path})
    impostor.port = server.port
    await impostor.start()
    await impostor.desire(manifest(repository.version("evil"), 2))
    await asyncio.sleep(1.5)
    assert impostor.streams == 0 and "certificate" in host.link.trouble
    await impostor.close()
    await server.start()
    await server.desire(manifest(commit, 3))
    await server.reported("live", 3)


@pytest.mark.flow
async def test_an_idle_agent_is_small(server, repository, machine):
    await machine.start()
    for sequence in (1, 2):
        await server.desire(manifest(repository.version(f"v{sequence}"), sequence))
        await server.reported("live", sequence)
    await asyncio.sleep(1)
    status = Path(f"/proc/{machine.process.pid}/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0])
    assert resident <= 45 * 1024, f"{resident} KiB"


@pytest.mark.flow
async def test_enrolment_trusts_nobody_but_the_tokens_server(server, tmp_path):
    host = Host(tmp_path / "host")
    token = server.token(ca="0" * 64)
    status, _, errors = await host.waybill("agent", "enroll", token, "--allow", "hello/*")
    assert status == 3 and "another fingerprint" in errors
    assert not host.home.root.exists() or not list(host.home.root.rglob("*.key"))
    status, _, errors = await host.waybill("agent", "enroll", server.token(secret="guessed"), "--allow", "hello/*")
    assert status == 3 and "not valid" in errors
    status, _, errors = await host.waybill("agent", "enroll", "wbe1.nonsense", "--allow", "hello/*")
    assert status == 2 and "no enrolment token" in errors
    output = await host.enroll(server)
    assert identity.fingerprint(server.recipients["web-1"]) in output
    for path in host.home.keys.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    status, _, errors = await host.waybill("agent", "enroll", server.token(), "--allow", "hello/*")
    assert status == 6 and "enrolled already" in errors


async def test_five_hundred_messages_are_heard_in_a_second(server, repository, host):
    await host.start()
    await server.desire(manifest(repository.version("one"), 1))
    await server.reported("live", 1)
    began = time.monotonic()
    for number in range(500):
        await server.abandon("hello", "production", number % 2)
    await server.desire(manifest(repository.version("two"), 2))
    await server.reported("live", 2)
    assert time.monotonic() - began < 10
