"""The driver systemd on a real host: its commands are performed, and users from outside see what comes of it."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from pathlib import Path

import msgspec
import pytest

from system.hosts import Fleet, Host, wait_for
from system.load import Load
from waybill.drivers import redirect
from waybill.drivers.model import Command, Health, Release
from waybill.drivers.systemd import DRIVER, Options, unit_name

pytestmark = [pytest.mark.flow, pytest.mark.system]
ON_HOST = Path(__file__).parent / "on_host"
HELLO = "#!/usr/bin/python3\n" + (ON_HOST / "hello.py").read_text()
HOME = "/var/lib/waybill"
PORT = 8080
KEY = "hello/production"


class Site:
    """A host on which this test deploys by hand what the agent would deploy by itself."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.last = 0
        host.run(["useradd", "--system", "hello"])
        host.write("/opt/perform.py", (ON_HOST / "perform.py").read_text())

    def release(
        self, version: str, behaviour: str = "", *, key: str = "hello/production", **changes: object
    ) -> Release:
        """A version laid out on the host."""
        self.last = redirect.allocate([], after=self.last)
        name = f"20261120T125901Z-{version:0>12}"
        state = f"{HOME}/{key}"
        root = f"{state}/releases/{name}"
        self.host.write(f"{root}/hello", HELLO, 0o755)
        self.host.write(f"{root}/version", version)
        self.host.write(f"{root}/behaviour", behaviour)
        release = Release(
            key=key, id=name, sequence=1, commit=version * 40, root=root, state=state, user="hello",
            command=("./hello",), environment={"WAYBILL_RELEASE": name}, port=PORT, slot=self.last, drain=3.0,
            options=Options(),
            health=Health(path="/health", within=5.0),
        )  # fmt: skip
        return msgspec.structs.replace(release, **changes)

    def perform(self, commands: list[Command]) -> tuple[str, list[dict]]:
        """Perform commands; what went wrong, and what each took."""
        text = msgspec.json.encode(commands).decode()
        done = self.host.run(["/opt/waybill/bin/python3", "/opt/perform.py"], stdin=text)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        return rows[-1]["reason"], rows

    def do(self, step: str, release: Release, previous: Release | None = None) -> str:
        """Perform a step twice over, as after a power cut; what went wrong."""
        return self.perform(self.twice(step, release, previous))[0]

    def twice(self, step: str, release: Release, previous: Release | None) -> list[Command]:
        """The commands of a step, two times."""
        return [*DRIVER.plan(step, release, previous)] * 2

    def deploy(self, release: Release, previous: Release | None = None) -> str:
        """All steps of a rollout; a version that fails is taken away again."""
        steps = ("start", "probe", "switch")
        if reason := self.perform([one for step in steps for one in self.twice(step, release, previous)])[0]:
            self.do("stop", release, previous)
            return reason
        return self.do("stop", previous, release) if previous else ""

    def ask(self, port: int = PORT) -> dict:
        """What a user from outside is told."""
        with urllib.request.urlopen(f"http://{self.host.address}:{port}/", timeout=2) as response:
            return json.load(response)

    def answered(self) -> dict:
        """The same, and nothing where nobody answers."""
        try:
            return self.ask()
        except OSError:
            return {}


@pytest.fixture(scope="module")
def site(fleet: Fleet) -> Site:
    return Site(fleet.host("web").boot())


@pytest.fixture
def live(site: Site):
    """A version that serves users, and nothing else on the host."""
    release = site.release("1")
    assert site.deploy(release) == ""
    yield release
    site.host.run(["nft", "delete", "table", "inet", "waybill"], check=False)
    site.host.run(["systemctl", "stop", "waybill-*.*-*.service"])
    site.host.run(
        ["sh", "-c", "rm -f /etc/systemd/system/waybill-* /etc/systemd/system/*/waybill-*; systemctl daemon-reload"]
    )


def connects(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=0.5).close()
    except OSError:
        return False
    return True


def test_a_switch_under_load_loses_no_request(site: Site, live: Release):
    new = site.release("2")
    with Load(site.host.address, PORT) as load:
        wait_for(lambda: len(load.answers) > 200, "the load to begin")
        for step in ("start", "probe"):
            assert site.do(step, new, live) == ""
        before = time.monotonic()
        reason, rows = site.perform(list(DRIVER.plan("switch", new, live)))
        after = time.monotonic()
        assert reason == ""
        time.sleep(0.5)  # the load goes on while the old version drains
        draining = time.monotonic()
        assert site.do("stop", live, new) == ""
        stopped = time.monotonic()
        time.sleep(0.3)
    print(f"\nswitch {[row['took'] for row in rows]} ms, {len(load.answers)} requests, stop {stopped - draining:.1f} s")
    assert load.lost == []
    assert load.versions(kept=False, connected_before=before) == {"1"}
    assert load.versions(kept=False, connected_after=after) == {"2"}
    assert load.versions(kept=True, connected_after=after) == {"2"}
    # Connections from before the switch stay with the old version until it has drained.
    stayed = {
        answer.version for answer in load.answers if answer.kept and answer.connected < before < after < answer.at
    }
    assert stayed == {"1"}
    assert min(sum(answer.kept == kept for answer in load.answers) for kept in (False, True)) > 200


def test_an_answer_under_way_is_finished_before_the_old_version_ends(site: Site, live: Release):
    new = site.release("2")
    with socket.create_connection((site.host.address, PORT), timeout=5) as user:
        for step in ("start", "probe", "switch"):
            assert site.do(step, new, live) == ""
        user.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        begun = time.monotonic()
        assert site.do("stop", live, new) == ""
        assert 0.5 < time.monotonic() - begun < 3.0  # not at once, nor the whole drain for nobody
        assert b'"version": "1"' in user.recv(4096)
    assert site.ask()["version"] == "2"


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [("broken", "500"), ("crash", "does not answer"), ("loopback", "listens on 127.0.0.1 alone")],
)
def test_a_bad_version_never_reaches_a_user(site: Site, live: Release, behaviour: str, said: str):
    bad = site.release("3", behaviour, health=Health(path="/health", within=1.0))
    with Load(site.host.address, PORT, users=1) as load:
        reason = site.deploy(bad, live)
    assert said in reason
    assert load.lost == [] and {answer.version for answer in load.answers} == {"1"}
    assert unit_name(bad) not in site.host.run(["systemctl", "list-units", "--all", "--plain"]).stdout
    assert site.ask()["version"] == "1"


def test_another_program_on_the_slot_does_not_pass_for_the_version(site: Site, live: Release):
    new = site.release("2", health=Health(path="/", within=1.0))
    site.host.unit("stranger", ["python3", "-m", "http.server", str(new.slot)])
    wait_for(lambda: site.host.run(["ss", "-Hltn", f"sport = {new.slot}"]).stdout, "the stranger to listen")
    try:
        assert "another process than the new version's" in site.deploy(new, live)
    finally:
        site.host.run(["systemctl", "stop", "stranger"])
    assert site.ask()["version"] == "1"


def test_users_reach_the_public_port_from_everywhere_and_a_slot_from_nowhere(site: Site, live: Release):
    host = site.host
    assert connects(host.address, PORT) and connects(host.address6, PORT)
    assert not connects(host.address, live.slot) and not connects(host.address6, live.slot)
    for address in ("127.0.0.1", "::1", host.address, host.address6):
        script = f"import socket; socket.create_connection(({address!r}, {PORT}), timeout=2)"
        host.run(["python3", "-c", script])


def test_connections_to_other_machines_are_left_alone(fleet: Fleet, site: Site, live: Release):
    other = fleet.host("other").boot()
    other.unit("far", ["python3", "-m", "http.server", str(PORT), "--directory", "/etc"])
    wait_for(lambda: connects(other.address, PORT), "the other host to answer")
    script = f"import urllib.request as u; print(u.urlopen('http://{other.address}:{PORT}/hostname').read().decode())"
    assert site.host.run(["python3", "-c", script]).stdout.strip() == "other"
    other.power_cut()


def test_a_port_that_another_service_has_is_refused_and_stays_with_it(site: Site, live: Release):
    thief = site.release("9", key="thief/production")
    assert "File exists" in site.deploy(thief)
    assert site.ask()["version"] == "1"
    assert "thief" not in site.host.run(["nft", "list", "table", "inet", "waybill"]).stdout


def test_a_service_may_change_its_port(site: Site, live: Release):
    moved = site.release("2", port=9090)
    assert site.deploy(moved, live) == ""
    assert site.ask(9090)["version"] == "2"
    assert not connects(site.host.address, PORT)


def test_what_is_removed_is_gone(site: Site, live: Release):
    assert site.do("stop", live) == ""
    assert not connects(site.host.address, PORT)
    assert "hello" not in site.host.run(["nft", "list", "table", "inet", "waybill"]).stdout
    assert "hello" not in site.host.run(["sh", "-c", "ls -R /etc/systemd/system; systemctl list-units --all"]).stdout


def test_flushed_rules_are_made_again_from_what_the_host_knows(site: Site, live: Release):
    site.host.run(["nft", "flush", "ruleset"])
    assert not connects(site.host.address, PORT)
    route = redirect.Route(key=live.key, port=PORT, slot=live.slot)
    for _ in range(2):
        site.host.run(["nft", "-f", "-"], stdin=redirect.restore([route]))
        assert site.ask()["version"] == "1"
    assert site.deploy(site.release("2"), live) == ""
    assert site.ask()["version"] == "2"


def test_a_service_without_a_port_has_to_live_to_count_as_started(site: Site, live: Release):
    bad = site.release("5", key="worker/production", port=None, slot=0, command=("sh", "-c", "sleep 0.5; exit 3"))
    assert "failed" in site.deploy(bad)
    good = msgspec.structs.replace(bad, command=("sleep", "1000"))
    assert site.deploy(good) == ""
    assert site.host.run(["systemctl", "is-active", unit_name(good)]).stdout == "active\n"


def test_a_service_that_dies_is_started_again(site: Site, live: Release):
    first = site.ask()["pid"]
    site.host.run(["systemctl", "kill", "--signal=KILL", unit_name(live)])
    wait_for(lambda: site.answered().get("pid", first) != first, "another process to answer")


def test_limits_hold(site: Site, live: Release):
    limited = site.release("2", options=Options(memory="64M", tasks=20, files=99))
    assert site.deploy(limited, live) == ""
    shown = site.host.run(["systemctl", "show", unit_name(limited), "-p", "MemoryMax,TasksMax,LimitNOFILE"]).stdout
    assert set(shown.split()) == {f"MemoryMax={64 << 20}", "TasksMax=20", "LimitNOFILE=99"}


def test_the_unit_is_well_locked_up(site: Site, live: Release):
    score = site.host.run(["systemd-analyze", "security", "--no-pager", unit_name(live)]).stdout.splitlines()[-1]
    print(score)
    assert float(score.split(": ")[1].split()[0]) <= 2.0, score
    script = "for f in /etc/x {0}/x {0}/releases/x; do touch $f && echo wrote $f; done; touch {0}/shared/x && id -un"
    shut = site.release("4", key="shut/production", port=None, slot=0)
    site.host.run(["sh", "-c", 'mkdir -p "$1/shared" && chmod 777 "$1" "$1/shared"', "sh", shut.state])
    shut = msgspec.structs.replace(shut, command=("sh", "-c", script.format(shut.state) + "; exec sleep 1000"))
    assert site.deploy(shut) == ""
    log = site.host.run(["journalctl", "-t", "shut/production", "-o", "cat"]).stdout
    assert "wrote" not in log and "hello" in log
