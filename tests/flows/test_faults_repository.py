"""What comes from outside fails: repositories, commits, keys, senders of hooks."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import shutil
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.repos import git
from support.system import KEY, System, system
from waybill.core.ids import new_id

pytestmark = pytest.mark.flow


async def test_a_repository_that_vanishes_is_told_once_and_pushes_go_on_when_it_is_back(tmp_path: Path) -> None:
    async with system(tmp_path, "web1") as s:
        await s.deploy("1")
        users = s.users("1", "2")
        away = s.repo.bare.with_name("elsewhere.git")
        s.repo.bare.rename(away)
        status, _ = await deliver(s, new_id())
        assert status == 202
        told = await s.until(lambda: s.events("RepositoryAway"), "nobody says that the repository is gone")
        assert told[0]["sentence"].startswith("team/hello cannot be fetched")
        assert "what runs keeps running" in told[0]["sentence"]
        assert "team/hello cannot be fetched" in await s.waybill("status")
        await s.until(
            lambda: s.query("SELECT 1 FROM work WHERE handler = 'sync' AND attempts > 1"), "it is not retried"
        )
        away.rename(s.repo.bare)
        commit = s.commit("2")
        await s.push()
        await s.serves("2")
        await s.ended(commit)
        assert len(await s.events("RepositoryAway")) == 1, "told once, however often it was tried"
        assert [one["sentence"] for one in await s.events("RepositoryBack")] == ["team/hello can be fetched again"]
        assert "cannot be fetched" not in await s.waybill("status")
        await s.nobody_lost(users)


async def test_a_forced_push_deploys_the_head_that_is_there(tmp_path: Path) -> None:
    async with system(tmp_path, "web1") as s:
        await s.deploy("1")
        await s.deploy("2")
        git(s.repo.work, "reset", "-q", "--hard", "HEAD~1")
        commit = s.commit("3")
        await s.push(force=True)
        await s.serves("3")
        await s.ended(commit)
        moved = await s.events("BranchMoved")
        assert [one["body"]["forced"] for one in moved if one["body"]["commit"] == commit] == [True]
        s.started_once("1", "2", "3")


async def test_going_back_to_a_commit_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    async with system(tmp_path, "web1") as s:
        first = await s.deploy("1")
        await s.deploy("2")
        # The forge lost the commit, the server its mirror, and the host what it had of it.
        git(s.repo.work, "checkout", "-q", "--orphan", "fresh")
        commit = s.commit("3")
        await s.push(force=True)
        await s.serves("3")
        await s.ended(commit)
        git(s.repo.bare, "reflog", "expire", "--expire=now", "--all")
        git(s.repo.bare, "gc", "-q", "--prune=now")
        await s.server.kill()
        for folder in (s.data / "mirrors", s.data / "packs"):
            shutil.rmtree(folder)
        await s.agents["web1"].kill()
        for store in s.agents["web1"].home.objects.iterdir():
            (store / f"refs/waybill/{first}").unlink(missing_ok=True)
        await s.start_server()
        await s.agents["web1"].start()
        await s.connected()
        users = s.users("3")
        began = time.monotonic()
        wanted = {"service": "hello", "environment": "production", "to": first[:12]}
        rollout = await s.call("POST", "/api/rollback", wanted)

        async def over() -> dict[str, str]:
            found = next(one for one in await s.rollouts() if one["id"] == rollout["id"])
            return found if found["finished"] else {}

        ended = await s.until(over, "the rollback does not end")
        assert ended["state"] in ("failed", "reverted")
        assert first[:12] in ended["reason"] and "gone" in ended["reason"], ended["reason"]
        assert time.monotonic() - began < 20
        assert (await s.ask(s.agents["web1"]))["version"] == "3"
        await s.nobody_lost(users)


async def test_a_locked_file_that_does_not_open_is_refused_and_the_old_version_serves(tmp_path: Path) -> None:
    async with system(tmp_path, "web1") as s:
        work = s.repo.work
        s.commit("0")
        (work / ".waybill").mkdir()
        (work / ".waybill/production.yml").write_text("GREETING: a secret\n")
        await s.waybill("lock", "production", cwd=work)
        fingerprint = (await s.call("GET", "/api/hosts/web1"))["fingerprint"]
        words = ["keys", "grant", "production", "web1", "--service", "hello", "--fingerprint", fingerprint]
        await s.waybill(*words, cwd=work)
        await s.deploy("1", variables=".waybill/production.enc.yml")
        users = s.users("1", "2")
        # Nobody granted this host the key any more.
        await s.call("DELETE", f"/api/sealed/{KEY}/web1")
        commit = s.commit("3", variables=".waybill/production.enc.yml")
        await s.push()
        rollout = await s.ended(commit, "reverted")
        assert "was not granted the key" in rollout["reason"] and "waybill keys grant production" in rollout["reason"]
        # It is granted a wrong one: sealed to somebody else.
        from waybill.vault import identity

        wrong = identity.seal(b"AGE-SECRET-KEY-1\n", identity.new().recipient)
        await s.call("PUT", f"/api/sealed/{KEY}/web1", {"armor": wrong})
        commit = s.commit("4", variables=".waybill/production.enc.yml")
        await s.push()
        rollout = await s.ended(commit, "reverted")
        assert "does not open" in rollout["reason"], rollout["reason"]
        assert (await s.ask(s.agents["web1"]))["version"] == "1"
        await s.waybill(*words, cwd=work)
        await s.deploy("2", variables=".waybill/production.enc.yml")
        await s.nobody_lost(users)
        assert not {version for _, version in s.starts()} & {"3", "4"}, "nothing was started without its variables"


async def test_a_thousand_duplicate_deliveries_deploy_once(tmp_path: Path) -> None:
    async with system(tmp_path, "web1") as s:
        await s.deploy("1")
        users = s.users("1", "2")
        (s.repo.bare / "hooks/post-receive").unlink()
        commit = s.commit("2")
        await s.push()
        identity = new_id()
        one, other = await asyncio.gather(
            asyncio.gather(*(deliver(s, identity) for _ in range(500))),
            asyncio.gather(*(deliver(s, identity) for _ in range(500))),
        )
        statuses = [status for status, _ in (*one, *other)]
        assert statuses.count(202) == 1 and set(statuses) <= {200, 202}
        await s.serves("2")
        await s.ended(commit)
        assert len(await s.events("PushReceived")) == 2
        assert len(await s.rollouts(commit)) == 1
        s.started_once("1", "2")
        await s.nobody_lost(users)


async def test_every_delivery_that_was_answered_is_acted_on_after_a_kill(tmp_path: Path) -> None:
    async with system(tmp_path, "web1", WAYBILL_SWEEP="3600") as s:
        await s.deploy("1")
        (s.repo.bare / "hooks/post-receive").unlink()
        s.commit("2")
        await s.push()
        answered: list[str] = []

        async def send() -> None:
            while True:
                identity = new_id()
                status, _ = await deliver(s, identity)
                if status != 202:
                    return
                answered.append(identity)

        senders = [asyncio.create_task(send()) for _ in range(8)]
        await s.until(lambda: len(answered) >= 40, "deliveries are not answered")
        await s.server.kill()
        await asyncio.gather(*senders)
        await s.start_server()
        await s.serves("2")
        kept = {row[0] for row in s.query("SELECT delivery FROM delivery")}
        assert set(answered) <= kept, "a delivery was answered and lost"
        await s.until(
            lambda: not s.query("SELECT 1 FROM work WHERE handler LIKE 'deploy_on_push%' OR handler = 'sync'"),
            "work is left",
        )
        s.started_once("1", "2")


async def test_senders_that_dribble_hold_no_hook_up(tmp_path: Path) -> None:
    async with system(tmp_path, "web1") as s:
        await s.deploy("1")
        address = urlsplit(s.url)
        slow = [await asyncio.open_connection(address.hostname, address.port) for _ in range(300)]

        async def dribble() -> None:
            head = f"POST {urlsplit(s.hook['url']).path} HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n"
            while True:
                for number, (_, writer) in enumerate(slow):
                    # Half of them dribble the head, the others are through with it and dribble the body.
                    writer.write(b"x" if number % 2 else head[:1].encode())
                    if not number % 2:
                        head = head[1:] or "x"
                await asyncio.sleep(0.1)

        for number, (_, writer) in enumerate(slow):
            if number % 2:
                writer.write(
                    f"POST {urlsplit(s.hook['url']).path} HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n".encode()
                )
        dribbling = asyncio.create_task(dribble())
        took = []
        for _ in range(40):
            began = time.monotonic()
            status, _ = await deliver(s, new_id())
            took.append(time.monotonic() - began)
            assert status == 202
        await s.deploy("2")
        dribbling.cancel()
        for _, writer in slow:
            writer.close()
        assert max(took) < 1, "a real hook had to wait for a slow one"


async def deliver(s: System, identity: str) -> tuple[int, str]:
    """Deliver a signed hook about main; 0 when nobody answers."""
    body = json.dumps({"v": 1, "repository": "team/hello", "pusher": "ann", "updates": [
        {"ref": "refs/heads/main", "before": "0" * 40, "after": "1" * 40}]}).encode()  # fmt: skip
    seconds = str(int(time.time()))
    content = f"{identity}.{seconds}.".encode() + body
    headers = {
        "content-type": "application/json",
        "waybill-delivery": identity,
        "waybill-timestamp": seconds,
        "waybill-signature": "v1=" + hmac.new(s.hook["secret"].encode(), content, hashlib.sha256).hexdigest(),
    }
    address = urlsplit(s.hook["url"])
    lines = [f"POST {address.path} HTTP/1.1", "host: x", "connection: close", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    try:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            answer = (await reader.read()).decode()
        finally:
            writer.close()
        return int(answer.split(" ", 2)[1]), answer
    except (OSError, IndexError) as error:
        return 0, repr(error)
