"""The server loses its past, all of it or some: hosts stop nothing, say what is wrong, and there is a way back."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from support.agents import end_services
from support.system import Agent, System, system
from waybill.agent.placing import secrets_file

pytestmark = pytest.mark.flow
LOCKED = ".waybill/production.enc.yml"


async def test_an_empty_database_and_data_folder_stop_nothing(tmp_path: Path) -> None:
    async with system(tmp_path, "web1", "web2") as s:
        await s.deploy("1")
        await s.deploy("2")
        users = s.users("2", "3")
        await s.server.kill()
        s.data.rename(tmp_path / "lost")
        s.token = ""
        await s.start_server()
        for agent in s.agents.values():
            said = await s.until(lambda at=agent: _told(s, at, "certificate"), "the host does not say what is wrong")
            assert "hello/production: live 2" in said and "waybill agent enroll" in said
        assert await s.call("GET", "/api/hosts") == []
        await _enrol_again(s)
        await s.until(lambda: s.host("web1"), "the server does not hear what runs")
        assert (await s.host("web1"))["live_sequence"] == 2
        assert "orphaned on web1: no grant covers it; it keeps running" in await s.waybill("status")
        await s.prepare()
        commit = await s.deploy("3")
        assert s.query(f"SELECT sequence FROM rollout WHERE \"commit\" = '{commit}'")[0][0] == 3, (
            "counted on from there"
        )
        await s.nobody_lost(users)
        s.started_once("1", "2", "3")


async def test_a_lost_database_beside_kept_keys_asks_for_enrolment_and_old_secrets_still_open(tmp_path: Path) -> None:
    async with system(tmp_path, "web1") as s:
        agent = s.agents["web1"]
        s.commit("0")
        (s.repo.work / ".waybill").mkdir()
        (s.repo.work / ".waybill/production.yml").write_text("GREETING: a secret\n")
        await s.waybill("lock", "production", cwd=s.repo.work)
        await _grant_key(s)
        await s.deploy("1", variables=LOCKED)
        users = s.users("1")
        await s.server.kill()
        for file in s.data.glob("waybill.sqlite*"):
            file.unlink()
        s.token = ""
        await s.start_server()
        said = await s.until(lambda: _told(s, agent, "does not know web1"), "the host does not say what is wrong")
        assert "waybill agent enroll TOKEN --force" in said and "Its services go on" in said
        await _enrol_again(s)
        await s.nobody_lost(users)
        s.started_once("1")
        # The host is switched off and on again before anybody has granted its new key anything.
        await agent.kill()
        release = agent.live_version()["spec"]["id"]
        end_services(agent.home)
        secrets_file(agent.home, agent.folder, release).unlink(missing_ok=True)
        await agent.start()
        await s.serves("1")
        await s.prepare()
        await _grant_key(s)
        await s.deploy("2", variables=LOCKED)


async def test_an_older_database_is_outrun_not_obeyed(tmp_path: Path) -> None:
    async with system(tmp_path, "web1", "web2", WAYBILL_SWEEP="3600") as s:
        await s.deploy("1")
        _copy(s.data / "waybill.sqlite", tmp_path / "older")
        await s.deploy("2")
        await s.deploy("3")
        users = s.users("3", "4", "5")
        await s.server.kill()
        for file in s.data.glob("waybill.sqlite*"):
            file.unlink()
        shutil.copy(tmp_path / "older", s.data / "waybill.sqlite")
        await s.start_server()
        await s.connected()
        reason = await s.until(lambda: _reason(s, "web1"), "nobody says that an older release was refused")
        assert "it never goes back" in reason
        assert "went back to revision" in s.agents["web1"].said()
        # The next push is told above what hosts have, also to a host that was away when the server counted.
        commit = s.commit("4")
        await s.push()
        await s.serves("4")
        await s.ended(commit)
        await s.deploy("5")
        await s.nobody_lost(users)
        s.started_once("1", "2", "3", "4", "5")


async def _told(s: System, agent: Agent, words: str) -> str:
    """What ``waybill agent status`` says, once these words are among it."""
    said = await s.waybill("agent", "status", "--state", str(agent.home.root))
    return said if words in said else ""


async def _reason(s: System, name: str) -> str:
    return str((await s.host(name)).get("reason", ""))


async def _enrol_again(s: System) -> None:
    for agent in s.agents.values():
        await agent.kill()
    await s.enrol(*s.agents, force=True)
    await s.connected()


async def _grant_key(s: System) -> None:
    for host in await s.call("GET", "/api/hosts"):
        words = ["keys", "grant", "production", host["name"], "--service", "hello"]
        await s.waybill(*words, "--fingerprint", host["fingerprint"], cwd=s.repo.work)


def _copy(source: Path, target: Path) -> None:
    with sqlite3.connect(source) as old, sqlite3.connect(target) as new:
        old.backup(new)
    old.close()
    new.close()
