"""An agent, a service or a whole host fails: users keep being served, and the host comes to where it should be."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support.need import missing, need_program
from support.system import System, system

pytestmark = pytest.mark.flow

STAGES = ("fetching", "preparing", "starting", "probing", "switching", "retiring")
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


async def test_an_agent_killed_before_and_after_every_stage(tmp_path: Path) -> None:
    moments = [f"{when} {stage}" for stage in STAGES for when in ("before", "after")]
    async with system(tmp_path, "web1") as s:
        agent = s.agents["web1"]
        await s.deploy("0")
        users = s.users()
        for number, moment in enumerate(moments, 1):
            await agent.kill()
            await agent.start(DIE=moment)
            commit = s.commit(str(number))
            await s.push()
            async with asyncio.timeout(60):
                assert agent.process is not None
                assert await agent.process.wait() == -signal.SIGKILL, moment
            await agent.start()
            await s.serves(str(number))
            rollout = await s.ended(commit)
            assert rollout["state"] == "done", moment
            await s.until(
                lambda: not live.retiring if (live := agent.folder.live()) else False, "the old one is not ended"
            )
        await s.nobody_lost(users)
        s.started_once(*(str(number) for number in range(len(moments) + 1)))
        phases = [version["phase"] for version in agent.keeper()["versions"]]
        assert phases == ["live"], "an old version was left"


async def test_a_service_that_is_killed_is_back_before_a_person_notices(tmp_path: Path) -> None:
    async with system(tmp_path, "web1") as s:
        agent = s.agents["web1"]
        await s.deploy("1")
        before = agent.live_version()["pid"]
        os.kill(before, signal.SIGKILL)
        began = time.monotonic()
        await s.until(lambda: _other_than(s, before), "the service did not come back", 10)
        assert time.monotonic() - began < 5
        assert s.starts()["web1", "1"] == 2
        # Killed while the next version comes up: the old one is started again, the new one takes over.
        commit = s.commit("2", SLOW="0.5")
        await s.push()
        await s.until(lambda: len(agent.keeper()["versions"]) == 2, "the next version was not started")
        os.kill(agent.live_version()["pid"], signal.SIGKILL)
        await s.serves("2")
        await s.ended(commit)
        # Killed while it is being probed: it is started again, and goes live when it answers.
        commit = s.commit("3", SLOW="0.5")
        await s.push()
        started = await s.until(
            lambda: [v for v in agent.keeper()["versions"] if v["phase"] == "candidate" and v["pid"]],
            "3 was not started",
        )
        users = s.users("2", "3", clients=2)
        os.kill(started[0]["pid"], signal.SIGKILL)
        await s.serves("3")
        await s.ended(commit)
        await s.nobody_lost(users)


async def _other_than(s: System, pid: int) -> bool:
    return (await s.ask(s.agents["web1"])).get("pid", pid) != pid


async def test_a_host_that_does_not_come_back_holds_nobody_up_and_catches_up_when_it_does(tmp_path: Path) -> None:
    async with system(tmp_path, "web1", "web2", PATIENCE="2") as s:
        await s.deploy("1")
        await s.agents["web2"].kill()
        users = s.users("1", "2")
        commit = s.commit("2")
        await s.push()
        await s.serves("2", ["web1"])
        rollout = await s.ended(commit)
        assert "1 of 2 hosts are away and switch when they return: web2" in rollout["reason"]
        assert (await s.ask(s.agents["web2"]))["version"] == "1", "its service serves all the while"
        assert "not connected: web2" in await s.waybill("status")
        await s.agents["web2"].start()
        await s.serves("2", ["web2"])
        await s.nobody_lost(users)
        s.started_once("1", "2")
        said = [event["sentence"] for event in await s.events("HostReported") if event["body"]["host"] == "web2"]
        assert any("live" in sentence for sentence in said)


async def test_a_host_whose_network_is_cut_counts_as_away_though_it_never_said_good_bye(tmp_path: Path) -> None:
    nft = need_program("nft", "nftables")
    table = f"waybill_test_{os.getpid()}"
    async with system(tmp_path, "web1", "web2", PATIENCE="2", DEAD_AFTER="5") as s:
        await s.deploy("1")
        cut = f"table inet {table} {{ chain c {{ type filter hook input priority 0; "
        for port in _ports(s.agents["web2"].pid):
            cut += f"tcp sport {port} drop; tcp dport {port} drop; "
        made = subprocess.run([nft, cut + "}; }"], capture_output=True, text=True)
        if "not permitted" in made.stderr:
            missing("nftables, as root")
        assert not made.returncode, made.stderr
        try:
            users = s.users("1", "2")
            commit = s.commit("2")
            await s.push()
            await s.serves("2", ["web1"])
            rollout = await s.ended(commit)
            assert "web2" in rollout["reason"] and "away" in rollout["reason"]
        finally:
            subprocess.run([nft, "delete", "table", "inet", table], check=True)
        # It would notice by itself after three heartbeats of silence, a minute; a restart finds out at once.
        await s.agents["web2"].kill()
        await s.agents["web2"].start()
        await s.serves("2", ["web2"])
        await s.nobody_lost(users)
        s.started_once("1", "2")


def _ports(pid: int) -> list[int]:
    """Local ports of a process's TCP connections."""
    links = [str(one.readlink()) for one in Path(f"/proc/{pid}/fd").iterdir()]
    nodes = {link[8:-1] for link in links if link.startswith("socket:")}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return [int(row[1].split(":")[1], 16) for row in rows if row[9] in nodes]


async def test_a_full_disk_is_a_sentence_and_the_old_version_goes_on(tmp_path: Path) -> None:
    small = tmp_path / "web1"
    small.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3M", "tmpfs", small]).returncode:
        missing("a folder on a small disk (needs root and mount)")
    try:
        async with system(tmp_path, "web1", "web2") as s:
            await s.deploy("1")
            users = s.users("1", "3")
            (s.repo.work / "large").write_bytes(os.urandom(8 * 1024**2))
            commit = s.commit("2")
            await s.push()
            rollout = await s.ended(commit, "reverted")
            assert "web1" in rollout["reason"] and "No space left" in rollout["reason"], rollout["reason"]
            assert await s.waybill("status") and rollout["reason"] in await s.waybill("status")
            assert {(await s.ask(agent))["version"] for agent in s.agents.values()} == {"1"}
            (s.repo.work / "large").unlink()
            await s.deploy("3")
            await s.nobody_lost(users)
            s.started_once("1", "3")
    finally:
        subprocess.run(["umount", "-l", small], check=True)


@pytest.mark.parametrize("hours", ["-1h", "+1h"])
async def test_a_clock_that_is_an_hour_off_changes_nothing_and_is_told(tmp_path: Path, hours: str) -> None:
    if not LIBRARIES:
        missing("libfaketime (Debian package faketime)")
    fake = {"LD_PRELOAD": str(LIBRARIES[0]), "FAKETIME": hours, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    async with system(tmp_path, "web1", "web2") as s:
        await s.deploy("1")
        await s.agents["web1"].kill()
        await s.agents["web1"].start(**fake)
        await s.connected()
        users = s.users("1", "2", "3")
        await s.deploy("2")
        await s.deploy("3")
        await s.nobody_lost(users)
        s.started_once("1", "2", "3")
        assert "clock and the server's are 3" in s.agents["web1"].said(), "the agent's log tells it"
        status = await s.waybill("status")
        assert "clock of web1" in status, "and so does waybill status"
