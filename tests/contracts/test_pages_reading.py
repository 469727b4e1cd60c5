"""What people read on the pages, on both databases, over a real server."""

import re
from html import unescape

import pytest

from support.pages import (
    again,
    begin,
    deploy,
    enrol,
    facts,
    go_on,
    grant,
    new_token,
    refuse,
    say,
    serving,
    visiting,
    waiting,
)  # fmt: skip
from waybill.core.clock import later
from waybill.deploy.store import access as access_store
from waybill.deploy.store import hosts
from waybill.events import outbox

ONE, TWO = "1a" * 20, "2b" * 20


@pytest.fixture
async def what(database_url, tmp_path):
    async with waiting(database_url, tmp_path) as context:
        yield context


def text_of(html):
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html)))


def a_team(c):
    for name in ("web1", "web2"):
        enrol(c, name, {"role": "web"}, facts=facts())
    grant(c, "hello", "production", {"role": "web"})
    return deploy(c, "hello", "production", ONE, ["web1", "web2"])


async def test_the_overview_says_what_is_live_how_healthy_and_what_runs(what):
    def seed(c):
        a_team(c)
        rollout = begin(c, "hello", "production", TWO, ["web1", "web2"])
        go_on(c, rollout)
        say(c, "web1", rollout, "live")
        say(c, "web2", rollout, "probing")
        return rollout

    rollout = await what.db.write(seed)
    _, text = await new_token(what.db)
    async with serving(what) as address, visiting(address, text) as visit:
        answer = await visit.get("/")
        words = text_of(answer.text)
        assert answer.status_code == 200
        assert "Healthy on 2 hosts" in words
        assert "1 rollout under way" in words
        assert "1 of 2 hosts through" in words
        assert "Checking health" in words
        assert ONE[:12] in words and TWO[:12] in words
        assert "+00:00" in words and "just now" in words
        one = text_of((await visit.get(f"/rollouts/{rollout.id}")).text)
        assert "120 ms" in one and "web1" in one and "not yet" in one and TWO in one


async def test_warnings_name_missing_checks_absent_hosts_orphans_and_refusals(what):
    def seed(c):
        a_team(c)
        begin(c, "hello", "production", TWO, ["web1"], warnings=["hello/production has no health check: careful."])
        hosts.set_labels(c, "web2", {"role": "db"})
        hosts.heard(c, ["web2"], connected=False)
        enrol(c, "old", {}, facts=facts(at=later(-3 * 3600), disk_free=1000))
        deploy(c, "gone", "production", ONE, ["old"])
        refuse(c, reason="team/hello may not deploy x/y.", hint="An admin grants it.", service="x", environment="y")
        outbox.wake(c, "deploy.push", "key-7")

    await what.db.write(seed)
    await what.db.write(lambda c: c.execute(outbox.work_table.update().values(aside=True, error="it broke")))
    _, text = await new_token(what.db)
    async with serving(what) as address, visiting(address, text) as visit:
        words = text_of((await visit.get("/")).text)
    assert "has no health check" in words
    assert "web2 is away; shown is what was last heard." in words
    assert "Orphaned on web2: the host's labels no longer match the grant." in words
    assert "Orphaned on old: nothing grants it any more." in words
    assert "team/hello may not deploy x/y." in words and "An admin grants it." in words
    assert "deploy.push" in words and "it broke" in words
    assert "Clock 3 h behind" in words and "1000 bytes free" in words


async def test_a_rollout_that_went_back_keeps_what_its_hosts_said(what):
    def seed(c):
        a_team(c)
        rollout = go_on(c, begin(c, "hello", "production", TWO, ["web1", "web2"]))
        say(c, "web2", rollout, "failed", reason="the check answered 500.", evidence="HTTP/1.1 500", took=431)
        go_on(c, rollout)
        for name in ("web1", "web2"):
            say(c, name, rollout, "live", took=77)
        return go_on(c, rollout)

    rollout = await what.db.write(seed)
    _, text = await new_token(what.db)
    async with serving(what) as address, visiting(address, text) as visit:
        page = text_of((await visit.get(f"/rollouts/{rollout.id}")).text)
        assert "Reverted web2: the check answered 500." in page
        assert page.count("Back on the release before") == 2
        assert "HTTP/1.1 500" in page and "failed after 431 ms" in page and "77 ms" in page
        overview = text_of((await visit.get("/")).text)
        assert ONE[:12] in overview and "All is well" in overview


async def test_a_bound_token_sees_its_own_and_nothing_else(what):
    def seed(c):
        a_team(c)
        enrol(c, "vault9", {"role": "secret"}, facts=facts())
        grant(c, "payroll", "production", {"role": "secret"}, "team/payroll")
        refuse(c, repository="team/payroll", reason="payroll-reason.", service="payroll", environment="production")
        refuse(c, repository="team/payroll", reason="payroll-file.")
        return deploy(c, "payroll", "production", TWO, ["vault9"], repository="team/payroll")

    hidden = await what.db.write(seed)
    _, text = await new_token(what.db, "viewer", "bob", services="hello")
    async with serving(what) as address, visiting(address, text) as visit:
        for path in ("/", "/hosts", "/rollouts", "/timeline", "/environments/hello/production"):
            answer = await visit.get(path)
            assert answer.status_code == 200
            assert "payroll" not in answer.text and "vault9" not in answer.text and TWO[:12] not in answer.text
            assert "hello" in answer.text or path == "/hosts"
        for path in (f"/rollouts/{hidden.id}", "/environments/payroll/production", "/rollouts/nothing"):
            answer = await visit.get(path)
            assert answer.status_code == 404
            assert "vault9" not in answer.text and TWO[:12] not in answer.text
        assert (await visit.get("/environments/hello/production")).text.count("<form") == 1  # log-out alone


async def test_hostile_names_are_shown_inert(what):
    evil = "<script>alert(1)</script>\u202egnp.exe"

    def seed(c):
        enrol(c, '"><img src=x>', {"a": "<b>" + "x" * 300}, facts=facts(version="<i>\x1b[31m"))
        refuse(c, branch=evil, reason=evil, hint="\u2066" + "y" * 5000)
        rollout = deploy(c, "a<b", "..c&d?x#y", ONE, ['"><img src=x>'])
        say(c, '"><img src=x>', rollout, "failed", evidence="</pre><script>alert(2)</script>\nsecond line")
        return rollout

    rollout = await what.db.write(seed)
    _, text = await new_token(what.db, name="<u>eve")
    async with serving(what) as address, visiting(address, text) as visit:
        for path in ("/", "/hosts", "/timeline", f"/rollouts/{rollout.id}"):
            answer = await visit.get(path)
            body = answer.text
            assert answer.status_code == 200
            assert not re.search(r"<script(?! src=\"/static/live\.js)|<img src=x|<u>|<b>|<i>", body)
            assert "\u202e" not in body and "\u2066" not in body and "\x1b" not in body
        assert "⟨U+202E⟩" in (await visit.get("/")).text
        found = re.search(r'href="(/environments/[^"]+)"', (await visit.get("/")).text).group(1)
        assert (await visit.get(found)).status_code == 200


async def test_log_in_is_needed_expires_with_its_token_and_ends_with_log_out(what):
    token, text = await new_token(what.db)
    async with serving(what) as address, visiting(address) as visit:
        for path in ("/", "/hosts", "/rollouts", "/timeline", "/rollouts/x", "/environments/a/b"):
            answer = await visit.get(path)
            assert answer.status_code == 303 and answer.headers["location"].startswith("/login")
        assert (await visit.get("/live", params={"page": "overview"})).status_code == 401
        wrong = await visit.post("/login", data={"token": text[:-1] + "~"})
        assert wrong.status_code == 401 and "not known here" in wrong.text and text[:-1] not in wrong.text
        right = await visit.post("/login", data={"token": text, "next": "/hosts?page=1"})
        assert right.headers["location"] == "/hosts?page=1"
        cookie = right.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and text.split("_", 2)[2] not in cookie
        assert (await visit.get("/")).status_code == 200
        name, value = next(iter(visit.cookies.items()))
        left = await visit.post("/logout")
        assert left.status_code == 303 and (await visit.get("/")).status_code == 303
        for forged in (
            value[:-1] + ("0" if value[-1] != "0" else "1"),
            value.replace("1.", "1.0", 1),
            "x" * 5000,
            "",
        ):
            assert (await visit.get("/", headers={"cookie": f"{name}={forged}"})).status_code == 303
        assert (await visit.get("/", headers={"cookie": f"{name}={value}"})).status_code == 200
        await what.db.write(lambda c: access_store.revoke_token(c, token.id))
        assert (await visit.get("/", headers={"cookie": f"{name}={value}"})).status_code == 303


async def test_the_session_reads_the_api_and_changes_nothing_there(what):
    from waybill.web.app import public_app

    await what.db.write(a_team)
    _, text = await new_token(what.db)
    async with serving(what, app=public_app(what)) as address, visiting(address, text) as visit:
        assert "hello" in (await visit.get("/api/status")).text
        for origin in ({"sec-fetch-site": "same-origin"}, {"origin": address}, {"sec-fetch-site": "cross-site"}):
            answer = await visit.post("/api/tokens", json={"name": "n", "role": "viewer"}, headers=origin)
            assert answer.status_code == 401
        await visit.post("/logout")
        assert (await visit.get("/api/status")).status_code == 401


async def test_https_makes_the_cookie_secure_and_pages_carry_every_header(what):
    _, text = await new_token(what.db)
    async with serving(again(what, public_url="https://ship.example")) as address, visiting(address) as visit:
        answer = await visit.post("/login", data={"token": text, "next": "//evil.example/x"})
        assert answer.headers["location"] == "/"
        assert "__Host-waybill=" in answer.headers["set-cookie"] and "Secure" in answer.headers["set-cookie"]
        for path in ("/login", "/", "/static/live.js", "/static/none", "/rollouts/none"):
            headers = (await visit.get(path)).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "same-origin"
            assert "strict-transport-security" in headers
        assert "no-store" in (await visit.get("/login")).headers["cache-control"]


async def test_posts_from_elsewhere_are_refused_and_log_ins_are_limited(what):
    _, text = await new_token(what.db)
    async with serving(what) as address, visiting(address, text) as visit:
        for headers in (
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
            {"sec-fetch-site": "none"},
        ):
            for path in ("/login", "/logout", "/deploy", "/rollback", "/cancel"):
                answer = await visit.post(path, data={"token": text}, headers=headers)
                assert answer.status_code == 403 and "another site" in answer.text
        del visit.headers["sec-fetch-site"]
        assert (await visit.post("/logout")).status_code == 403
        assert (await visit.post("/logout", headers={"origin": "https://evil.example"})).status_code == 403
        assert (await visit.post("/logout", headers={"origin": "null"})).status_code == 403
        assert (await visit.post("/login", data={"token": text}, headers={"origin": address})).status_code == 303
        assert (await visit.post("/logout", data={"x": "y" * 40_000}, headers={"origin": address})).status_code < 500
        statuses = [
            (await visit.post("/login", data={"token": "wbt_x"}, headers={"origin": address})).status_code
            for _ in range(30)
        ]
        assert statuses[0] == 401 and statuses[-1] == 429
        assert (await visit.post("/login", headers={"origin": address})).headers["x-frame-options"] == "DENY"


async def test_many_hosts_and_events_are_paged(what):
    def seed(c):
        for number in range(130):
            enrol(c, f"box{number:03}", {"n": str(number)}, facts=facts())

    await what.db.write(seed)
    _, text = await new_token(what.db)
    async with serving(what) as address, visiting(address, text) as visit:
        assert "All 130 hosts" in (await visit.get("/")).text
        first, second = (await visit.get("/hosts")).text, (await visit.get("/hosts?page=2")).text
        seen = set(re.findall(r'id="h-(box\d+)"', first)) | set(re.findall(r'id="h-(box\d+)"', second))
        assert len(seen) == 130
        timeline = (await visit.get("/timeline")).text
        older = re.search(r'href="(/timeline\?before=\d+)"', timeline).group(1)
        rest = (await visit.get(older)).text
        assert len(set(re.findall(r'id="(e\d+)"', timeline)) | set(re.findall(r'id="(e\d+)"', rest))) == 130
        assert (await visit.get("/hosts?page=0")).status_code == 400
        assert (await visit.get("/timeline?before=x")).status_code == 400
