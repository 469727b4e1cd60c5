"""Builds on a host, and hosts that run them."""

import gzip
import io
import os
import subprocess
import tarfile

import pytest

from support.agent_fixtures import host, repository, server  # noqa: F401
from support.agents import InProcess, asked, eventually, manifest
from support.fake_server import Fault, digest
from support.need import missing

# ruff: noqa: F811 - fixtures are named like their arguments

BUILD = """\
build: {command: [sh, make.sh], output: dist/, timeout: 5s}
"""
SCRIPT = b"""\
mkdir -p dist/bin; cp app.py dist/; echo run > dist/bin/tool; chmod 700 dist/bin/tool
ln -s bin/tool dist/tool; date +%N > /dev/null; touch -d 2001-01-01 dist/app.py
echo "built as $(id -un) in $PWD"
"""


def built(repository, version, script=SCRIPT):
    return repository.version(version, top=BUILD, files={"make.sh": script})


async def test_a_build_is_the_same_bytes_every_time_and_runs_elsewhere(server, repository, host):
    commit = built(repository, "one")
    await host.start()
    for order in ("one", "two"):
        await server.order(order, "hello", "team/hello", commit)
        await server.until(lambda order=order: order in server.uploads)
    packed = server.uploads["one"]
    assert packed == server.uploads["two"]
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        about = {member.name: member for member in archive}
        assert set(about) == {"app.py", "bin", "bin/tool", "tool"}
        assert all((one.mtime, one.uid, one.uname) == (0, 0, "") for one in about.values())
        assert about["bin/tool"].mode == 0o755 and about["app.py"].mode == 0o644 and about["tool"].issym()
    name = digest(packed)
    server.builds[name] = packed
    await server.desire(manifest(commit, 1, build=name))
    await server.reported("live", 1)
    assert await asked(repository.port) == f"one - {commit}"
    release = host.home.service("hello", "production").current.resolve()
    assert (release / "bin/tool").read_text() == "run\n" and not (release / "make.sh").exists()
    assert (release / "REVISION").read_text().strip() == commit
    assert not list(host.home.work.iterdir()) and not list(host.home.builds.iterdir())


async def test_a_failed_build_says_why(server, repository, host):
    await host.start()
    await server.order("b1", "hello", "team/hello", built(repository, "one", b"echo no compiler; exit 7"))
    await server.until(lambda: "b1" in server.build_failures)
    assert "status 7" in server.build_failures["b1"]["reason"]
    assert "no compiler" in server.build_failures["b1"]["output"]
    await server.order("b2", "hello", "team/hello", built(repository, "two", b"true"))
    await server.until(lambda: "b2" in server.build_failures)
    assert "left no dist" in server.build_failures["b2"]["reason"]
    await server.order("b3", "hello", "team/hello", repository.version("plain"))
    await server.until(lambda: "b3" in server.build_failures)
    assert "has no build" in server.build_failures["b3"]["reason"]


@pytest.mark.flow
async def test_an_order_survives_the_agent_and_a_server_that_drops_the_upload(server, repository, host):
    commit = built(repository, "one", b"sleep 1\n" + SCRIPT)
    await host.start()
    await server.order("b1", "hello", "team/hello", commit)
    await eventually(lambda: list(host.home.work.glob("build-*")) if host.home.work.exists() else False)
    await host.stop()
    server.faults = [Fault("PUT /v1/builds", "before"), Fault("PUT /v1/builds", "503")]
    await host.start()
    await server.until(lambda: "b1" in server.uploads)


async def test_a_damaged_build_is_refused(server, repository, host):
    commit = built(repository, "one")
    await host.start()
    await server.order("b1", "hello", "team/hello", commit)
    await server.until(lambda: "b1" in server.uploads)
    name = digest(server.uploads["b1"])
    server.builds[name] = server.uploads["b1"]
    server.faults = [Fault("GET /v1/builds", "corrupt")]
    await server.desire(manifest(commit, 1, build=name))
    assert "is not sha256:" in (await server.reported("failed", 1)).reason
    await server.desire(manifest(commit, 2, build="sha256:" + "0" * 64))
    assert "no such build" in (await server.reported("failed", 2)).reason
    await server.desire(manifest(commit, 3, build=name))
    await server.reported("live", 3)


def tar(*members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind, content in members:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            if kind == tarfile.REGTYPE:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
            else:
                entry.linkname = content
                archive.addfile(entry)
    return gzip.compress(out.getvalue())


HOSTILE = {
    "a path upwards": ([("../evil", tarfile.REGTYPE, b"x")], "no path inside"),
    "an absolute path": ([("/tmp/evil", tarfile.REGTYPE, b"x")], "no path inside"),
    "a link outside": ([("a", tarfile.SYMTYPE, "../../etc")], "leaves the release"),
    "an absolute link": ([("a", tarfile.SYMTYPE, "/etc/passwd")], "leaves the release"),
    "a file through a link": ([("a", tarfile.SYMTYPE, "."), ("a/b", tarfile.REGTYPE, b"x")], "is a link"),
    "a link by way of links": (
        [("d/e/f", tarfile.REGTYPE, b"x"), ("up", tarfile.SYMTYPE, "d/e"), ("out", tarfile.SYMTYPE, "up/../../..")],
        "leaves the release",
    ),
    "a hard link": ([("a", tarfile.LNKTYPE, "/etc/shadow")], "neither file"),
    "a device": ([("a", tarfile.CHRTYPE, "")], "neither file"),
    "a pipe": ([("a", tarfile.FIFOTYPE, "")], "neither file"),
    "the same name twice": ([("a", tarfile.REGTYPE, b"x"), ("a", tarfile.REGTYPE, b"y")], "twice"),
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_a_hostile_build_is_refused_and_leaves_nothing(case, tmp_path):
    from waybill.agent.objects import unpack
    from waybill.core.errors import WaybillError

    members, sentence = HOSTILE[case]
    packed = tmp_path / "packed"
    packed.write_bytes(tar(*members))
    target = tmp_path / "in" / "release"
    target.parent.mkdir()
    with packed.open("rb") as source, pytest.raises(WaybillError, match=sentence):
        await unpack("tar", target, None, 1 << 20, [], source)
    assert list(target.parent.iterdir()) == [] and not (tmp_path / "in/evil").exists()


async def test_a_bomb_stops_at_the_limit(tmp_path):
    from waybill.agent.objects import unpack
    from waybill.core.errors import WaybillError

    packed = tmp_path / "packed"
    packed.write_bytes(tar(("zeros", tarfile.REGTYPE, bytes(8 << 20))))
    with packed.open("rb") as source, pytest.raises(WaybillError, match="larger than this host accepts"):
        await unpack("tar", tmp_path / "release", None, 1 << 20, [], source)
    (tmp_path / "junk").write_bytes(os.urandom(1000))
    with (tmp_path / "junk").open("rb") as source, pytest.raises(WaybillError, match="damaged"):
        await unpack("tar", tmp_path / "release", None, 1 << 20, [], source)


@pytest.mark.flow
async def test_as_root_each_service_has_an_account_of_its_own(server, repository):
    """Root only: git, the unpacker, functions and the service run as three accounts that are not root."""
    if os.geteuid() != 0:
        missing("root, to make accounts")
    if not os.path.exists("/usr/bin/python3"):  # noqa: PTH110
        missing("a Python that other accounts can run, /usr/bin/python3")
    import pwd
    import tempfile
    from pathlib import Path

    from waybill.agent import enrol

    before = {entry.pw_name for entry in pwd.getpwall()}
    root = Path(tempfile.mkdtemp(prefix="waybill-test-", dir="/var/tmp"))
    root.chmod(0o711)
    host = InProcess(root)
    try:
        import asyncio

        await asyncio.to_thread(
            enrol.enrol, host.home, server.token(), name="web-1", allow=("hello/*",), force=False, accounts=True
        )
        who = root / "who"
        who.mkdir()
        who.chmod(0o777)
        repository.starts, repository.python = None, "/usr/bin/python3"
        extra = f"    before: [who]\nfunctions:\n  who: {{command: [sh, -c, 'id -un > {who}/function']}}\n"
        breakage = f'open("{who}/service", "w").write(str(os.getuid()))'
        await host.start()
        await server.desire(manifest(repository.version("one", extra=extra, breakage=breakage), 1))
        await server.reported("live", 1)
        account = pwd.getpwnam("wb-hello")
        assert (who / "function").read_text().strip() == "wb-hello"
        assert (who / "service").read_text() == str(account.pw_uid)
        release = host.home.service("hello", "production").current.resolve()
        assert release.stat().st_uid == account.pw_uid
        (store,) = host.home.objects.iterdir()
        assert store.owner() == "waybill-fetch" and (store / "refs/waybill").owner() == "waybill-fetch"
        for private in ("keys", "keys/host.key"):
            as_service = subprocess.run(["setpriv", "--reuid", str(account.pw_uid), "--clear-groups", "cat",
                                         host.home.root / private], capture_output=True)  # fmt: skip
            assert b"Permission denied" in as_service.stderr
    finally:
        await host.close()
        subprocess.run(["rm", "-rf", root])
        for name in {entry.pw_name for entry in pwd.getpwall()} - before:
            if name.startswith(("wb-", "waybill-")):
                subprocess.run(["userdel", name], capture_output=True)
