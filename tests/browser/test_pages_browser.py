"""The pages in a real Chromium: live without a reload, by keyboard, on a phone, in dark and light, without an error."""

import asyncio
import os
import tempfile
import time
from pathlib import Path

import pytest

from support import pages as team
from support.need import missing, need, need_program
from support.pages import again, new_token, serving, waiting
from support.repos import Repo
from waybill.deploy.model import Repository
from waybill.deploy.store import hosts

pytestmark = [pytest.mark.browser, pytest.mark.flow]
ONE, TWO = "1a" * 20, "2b" * 20
PHONE, DESK = (360, 740), (1280, 900)
FILE = """\
service: hello
environments:
  production:
    branches: [main]
    hosts: {role: web}
    run: {driver: process, command: [./serve], port: 8080}
    health: {path: /health}
"""
EVIDENCE = "GET /health -> 503 Service Unavailable\n" + "database: connection refused " * 8


@pytest.fixture
async def what(tmp_path):
    async with waiting("sqlite", tmp_path) as context:
        yield context


@pytest.fixture(scope="session")
def chrome():
    """One Chromium with an empty profile."""
    webdriver = need("selenium.webdriver", "the PyPI package selenium")
    from selenium.webdriver.chrome.service import Service

    chromium = need_program("chromium", "chromium")
    driver = need_program("chromedriver", "chromium-driver")
    with tempfile.TemporaryDirectory(prefix="waybill-chromium-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (
            "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
            "disable-component-update", "disable-sync", "disable-dev-shm-usage", f"user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        browser = webdriver.Chrome(options=options, service=Service(driver))
        yield browser
        browser.quit()


class Person:
    """Somebody at the browser; everything runs beside the event loop that serves the pages."""

    def __init__(self, browser, address):
        self.browser, self.address = browser, address

    async def do(self, function, *arguments):
        return await asyncio.to_thread(function, *arguments)

    async def go(self, path):
        await self.do(self.browser.get, self.address + path)

    async def run(self, script):
        return await self.do(self.browser.execute_script, script)

    async def text(self):
        return await self.run("return document.body.innerText")

    async def until(self, script, seconds=10.0):
        deadline = time.monotonic() + seconds
        while not (found := await self.run(script)):
            assert time.monotonic() < deadline, f"never: {script}\n{await self.text()}"
            await asyncio.sleep(0.05)
        return found

    async def sees(self, words, seconds=10.0):
        await self.until(f"return document.body.innerText.includes({words!r})", seconds)

    async def press(self, *keys):
        from selenium.webdriver import ActionChains

        await self.do(ActionChains(self.browser).send_keys(*keys).perform)

    async def log_in(self, text):
        await self.do(self.browser.delete_all_cookies)
        await self.go("/login")
        await self.press(text, "\ue007")
        await self.until("return location.pathname === '/' && !!document.getElementById('fragments')")

    async def look(self, size, dark=False):
        await self.do(
            self.browser.execute_cdp_cmd,
            "Emulation.setDeviceMetricsOverride",
            {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size is PHONE},
        )
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.do(self.browser.execute_cdp_cmd, "Emulation.setEmulatedMedia", {"features": [feature]})

    async def picture(self, name):
        """Keep a picture of the whole page where WAYBILL_PICTURES says."""
        folder = os.environ.get("WAYBILL_PICTURES")
        if folder:
            import base64

            shot = await self.do(
                self.browser.execute_cdp_cmd, "Page.captureScreenshot", {"captureBeyondViewport": True}
            )
            await self.do((Path(folder) / f"{name}.png").write_bytes, base64.b64decode(shot["data"]))

    async def complaints(self):
        return [entry["message"] for entry in await self.do(self.browser.get_log, "browser")]


@pytest.fixture
async def scene(what, chrome):
    """A person who is logged in at a server with something to see: (person, needs)."""
    running = await what.db.write(seed)
    _, text = await new_token(what.db)
    async with serving(what) as address:
        person = Person(chrome, address)
        await person.look(DESK)
        await person.log_in(text)
        await person.complaints()
        yield person, what, running
        await person.go("/static/favicon.svg")


def seed(c):
    for number in (1, 2, 3):
        team.enrol(c, f"web{number}", {"role": "web", "zone": "a"}, facts=team.facts())
    team.enrol(c, "build-machine-with-a-very-long-name.internal.example.com", {"role": "build"}, facts=team.facts())
    team.enrol(c, "db1", {"role": "db"}, connected=False, facts=team.facts(disk_free=10**8))
    team.enrol(c, "spare", {"role": "db"}, connected=None)
    for service, place, role in (
        ("hello", "production", "web"),
        ("hello", "staging", "web"),
        ("ledger", "production", "db"),
    ):
        team.grant(c, service, place, {"role": role})
    names = ["web1", "web2", "web3"]
    team.deploy(c, "hello", "production", ONE, names)
    warning = "hello/staging has no health check: a broken version will reach users."
    team.deploy(c, "hello", "staging", TWO, names, warnings=[warning])
    team.deploy(c, "ledger", "production", "3c" * 20, ["db1"])
    team.deploy(c, "retired", "production", "4d" * 20, ["web1"])
    broken = team.begin(c, "hello", "staging", "5e" * 20, names)
    team.go_on(c, broken)
    reason = "the health check answered 503 for 30 s"
    team.say(c, "web2", broken, "failed", reason=reason, evidence=EVIDENCE, took=30412)
    team.go_on(c, broken)
    for name in names:
        team.say(c, name, broken, "live")
    team.go_on(c, broken)
    team.refuse(
        c, branch="feature/x", service="hello", environment="production",
        reason="waybill.yml lets branch feature/x deploy hello/production, the grant does not: it names main.",
        hint="A service file only narrows what was granted.",
    )  # fmt: skip
    running = team.begin(c, "hello", "production", TWO, names)
    team.go_on(c, running)
    team.say(c, "web1", running, "live")
    team.say(c, "web2", running, "probing")
    return running


async def test_a_rollout_moves_on_the_page_without_a_reload(scene):
    person, what, running = scene
    await person.sees("Live: changes appear by themselves.")
    await person.run("window.same = true; document.querySelector('#services a').focus()")
    await person.sees("1 of 3 hosts through")

    def more(c):
        team.say(c, "web2", running, "live")
        team.say(c, "web3", running, "switching")

    began = time.monotonic()
    await what.db.write(more)
    await person.sees("2 of 3 hosts through")
    assert time.monotonic() - began < 3
    await person.sees("Switching")
    await what.db.write(lambda c: (team.say(c, "web3", running, "live"), team.go_on(c, running)))
    await person.until("return !document.querySelector('#services progress')")
    assert await person.run("return window.same === true")
    assert await person.run("return document.activeElement.matches('#services a')"), "focus was lost"
    assert await person.complaints() == []


async def test_the_page_says_when_it_is_cut_off_and_comes_back(what, chrome):
    await what.db.write(seed)
    _, text = await new_token(what.db)
    async with serving(what) as address:
        person = Person(chrome, address)
        await person.log_in(text)
        await person.sees("Live: changes appear by themselves.")
    await person.sees("Not connected; what you see may be old.")
    port = int(address.rpartition(":")[2])
    await what.db.write(lambda c: team.enrol(c, "newcomer", {"role": "web"}))
    async with serving(again(what), port=port):
        await person.sees("newcomer", 30)
        await person.sees("Live: changes appear by themselves.")
        await person.go("/static/favicon.svg")


async def test_every_page_fits_a_phone_in_dark_and_light_and_complains_of_nothing(scene):
    person, _, running = scene
    paths = {
        "overview": "/", "hosts": "/hosts", "rollouts": "/rollouts", "timeline": "/timeline",
        "rollout": f"/rollouts/{running.id}", "environment": "/environments/hello/staging", "missing": "/rollouts/none",
    }  # fmt: skip
    for size, name in ((PHONE, "phone"), (DESK, "desk")):
        for dark in (False, True):
            await person.look(size, dark)
            for page, path in paths.items():
                await person.go(path)
                wide = await person.run(
                    "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
                )
                assert wide <= 0, f"{path} scrolls sideways by {wide} px at {size[0]}"
                await person.picture(f"{page}-{name}-{'dark' if dark else 'light'}")
    await person.look(PHONE)
    await person.do(person.browser.delete_all_cookies)
    await person.go("/login")
    await person.picture("login-phone-light")
    assert [line for line in await person.complaints() if "404" not in line] == []


async def test_everything_can_be_reached_and_pressed_by_keyboard(scene, tmp_path):
    person, what, running = scene
    tab, enter = "\ue004", "\ue007"
    await person.go("/environments/hello/production")
    await person.press(tab)
    assert await person.run("return document.activeElement.className") == "skip"
    await person.press(enter)
    await person.press(tab)
    assert await person.run("return document.getElementById('main').contains(document.activeElement)")
    reached = set()
    for _ in range(60):
        await person.press(tab)
        here = await person.run(
            "const e = document.activeElement; const s = getComputedStyle(e);"
            "return [e.tagName, e.name || e.textContent, e === document.body || s.outlineStyle !== 'none']"
        )
        assert here[2], f"no visible focus on {here}"
        reached.add(here[1])
        if here[1] == "ref":
            break
    assert "ref" in reached
    repo = Repo(tmp_path)
    commit = repo.commit({"waybill.yml": FILE})
    repo.push()
    await what.pushes.add_repository(Repository(name="team/hello", url=str(repo.bare)), "test")
    await person.press("main", enter)
    await person.until("return location.pathname.startsWith('/rollouts/')")
    await person.sees(commit)
    assert "deploy by token:ada" in await person.text()
    await what.db.write(lambda c: team.go_on(c, running))
    await person.go(f"/rollouts/{running.id}")
    await person.run("document.querySelector('#rollout summary').focus()")
    await person.press(enter)
    await person.press(tab, "wrong branch", tab, enter)
    await person.sees("Going back")
    await person.sees("cancelled by token:ada: wrong branch")
    await person.run("document.querySelector('.account button').click()")
    await person.until("return location.pathname === '/login'")
    await person.go("/")
    assert "Your token" in await person.text()


async def test_it_reads_without_javascript(scene):
    person, _, _ = scene
    await person.do(person.browser.execute_cdp_cmd, "Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        await person.go("/")
        html = person.browser.page_source
        assert "1 of 3 hosts through" in html and "Reload" in html and "just now" in html
        assert "Live: changes" not in html
    finally:
        await person.do(person.browser.execute_cdp_cmd, "Emulation.setScriptExecutionDisabled", {"value": False})


async def test_axe_finds_no_barrier(scene):
    person, _, running = scene
    places = (os.environ.get("WAYBILL_AXE", ""), "node_modules/axe-core/axe.min.js")
    found = [path for path in places if path and Path(path).is_file()]
    if not found:
        missing("axe.min.js of the npm package axe-core, in node_modules or named by WAYBILL_AXE")
    axe = Path(found[0]).read_text()
    for dark in (False, True):
        for size in (DESK, PHONE):
            await person.look(size, dark)
            for path in (
                "/",
                "/hosts",
                "/timeline",
                f"/rollouts/{running.id}",
                "/environments/hello/staging",
                "/rollouts/none",
            ):
                await person.go(path)
                await person.run(axe)
                violations = await person.do(
                    person.browser.execute_async_script,
                    "axe.run(document).then(r => arguments[0](r.violations.map("
                    "v => [v.id, v.nodes.slice(0, 3).map(n => n.html + ' ' + n.failureSummary)])))",
                )
                assert violations == [], f"{path} {size} dark={dark}: {violations}"
    assert hosts.GONE_AFTER > 5  # what was seeded as connected stayed so
