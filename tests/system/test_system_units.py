"""Unit files before a real systemd: those that the driver writes, and those of the package."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from system.hosts import Fleet, Host, wait_for
from waybill.core.errors import InvalidInputError
from waybill.drivers.model import Release
from waybill.drivers.systemd import DRIVER, Options, unit_name, unit_text

pytestmark = [pytest.mark.flow, pytest.mark.system]
PACKAGED = Path(__file__).parents[2] / "packaging" / "systemd"
SHOW = "import json, os, sys; print(json.dumps([sys.argv[2:], dict(os.environ)]), file=open(sys.argv[1], 'w'))"
NASTY = [
    "",
    " ",
    "$HOME",
    "${HOME}",
    "$$",
    "%n",
    "%%",
    "100%",
    '"',
    "'",
    "\\",
    "\\n",
    "\n",
    "a\\\nb",
    ";",
    "\\x41",
    "é€😀",
    "#",
]
values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
counter = itertools.count()


@pytest.fixture(scope="module")
def host(fleet: Fleet) -> Host:
    host = fleet.host("units").boot()
    host.run(["useradd", "--system", "hello"])
    host.run(["install", "-d", "-o", "hello", "/var/lib/waybill/shared"])
    return host


@given(st.lists(values, max_size=20), st.lists(values, max_size=20))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(NASTY, NASTY)
def test_a_program_gets_exactly_the_values_that_were_meant(host: Host, arguments: list[str], held: list[str]):
    number = next(counter)
    seen = f"/var/lib/waybill/shared/{number}"
    release = Release(
        key="echo/test", id=str(number), sequence=1, commit=40 * "0", root="/", state="/var/lib/waybill", user="hello",
        command=("/usr/bin/python3", "-c", SHOW, seen, *arguments), port=8080, slot=31000, options=Options(),
        environment={f"V{index}": value for index, value in enumerate(held)},
    )  # fmt: skip
    try:
        [put, *_] = DRIVER.plan("start", release, None)
    except InvalidInputError:
        assert any(not sign.isprintable() for value in [*arguments, *held] for sign in value)
        return
    host.write(put.path, put.content)
    host.run(["systemctl", "daemon-reload"])
    host.run(["systemctl", "start", unit_name(release)])
    wait_for(lambda: host.run(["test", "-s", seen], check=False).returncode == 0, "the program to tell")
    told, environment = json.loads(host.read(seen))
    assert told == arguments
    assert {name: environment.get(name) for name in release.environment} == release.environment
    assert environment["PORT"] == "31000"


def test_systemd_has_nothing_to_say_about_a_unit(host: Host):
    release = Release(
        key="hello/production", id="1", sequence=1, commit=40 * "0", root="/var/lib/waybill", state="/var/lib/waybill",
        user="hello", command=("/bin/sleep", "1"), environment={"A": "b"}, port=8080, slot=31000,
        options=Options(memory="64M", tasks=9, files=99), secrets="/run/waybill/x.env",
    )  # fmt: skip
    for one in (release, msgspec.structs.replace(release, port=None, slot=0)):
        host.write(f"/tmp/{unit_name(one)}", unit_text(one))
        done = host.run(["systemd-analyze", "verify", f"/tmp/{unit_name(one)}"], check=False)
        assert done.returncode == 0 and not done.stderr, done.stderr


def test_systemd_has_nothing_to_say_about_the_units_of_the_package(host: Host):
    host.run(["ln", "-sf", "/opt/waybill/bin/waybill", "/usr/bin/waybill"])
    names = sorted(unit.name for unit in PACKAGED.glob("*.service"))
    assert names == ["waybill-agent-boot.service", "waybill-agent.service", "waybill.service"]
    for name in names:
        host.write(f"/lib/systemd/system/{name}", (PACKAGED / name).read_text())
    done = host.run(["systemd-analyze", "verify", *names], check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    host.run(["systemctl", "daemon-reload"])
    for name in names:
        score = host.run(["systemd-analyze", "security", "--no-pager", name]).stdout.splitlines()[-1]
        print(score)
        assert float(score.split(": ")[1].split()[0]) <= 4.0, score


def test_within_its_unit_the_agent_can_do_what_it_is_there_for(host: Host):
    text = (PACKAGED / "waybill-agent.service").read_text()
    script = """set -e
      useradd --system waybill-made
      mkdir -p /var/lib/waybill-agent/x && chown waybill-made /var/lib/waybill-agent/x
      setpriv --reuid=waybill-made --regid=waybill-made --clear-groups touch /var/lib/waybill-agent/x/mine
      printf '[Service]\\nExecStart=/bin/sleep 99\\n' > /etc/systemd/system/waybill-probe.service
      systemctl daemon-reload; systemctl start waybill-probe
      ls -l /proc/$(systemctl show -P MainPID waybill-probe)/fd > /dev/null
      systemctl --no-reload enable waybill-probe 2>/dev/null || true
      echo 'add table inet waybill' | nft -f -
      echo secret > /run/waybill/x.env
      git --version > /dev/null
      ! touch /usr/x 2>/dev/null; ! touch /boot/x 2>/dev/null
      journalctl -n 1 -u waybill-probe > /dev/null
      systemctl stop waybill-probe
      touch /run/waybill/did-it-all
    """
    host.write("/opt/chores.sh", script)
    host.write("/var/lib/waybill-agent/agent.toml", "")
    lines = [
        line for line in text.splitlines() if not line.startswith(("ExecStart=", "Type=", "Restart=", "WatchdogSec="))
    ]
    unit = "\n".join(lines).replace("[Service]", "[Service]\nType=oneshot\nExecStart=/bin/sh -x /opt/chores.sh")
    host.write("/etc/systemd/system/chores.service", unit)
    host.run(["systemctl", "daemon-reload"])
    done = host.run(["systemctl", "start", "chores"], check=False)
    assert done.returncode == 0, host.run(["journalctl", "-u", "chores", "-o", "cat"]).stdout
    assert host.read("/run/waybill/x.env") == "secret\n"  # still there, though the unit has ended
    assert host.run(["ls", "/run/waybill/did-it-all"])
