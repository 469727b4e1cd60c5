"""What the systemd driver would do at each step."""

from __future__ import annotations

import msgspec
import pytest

from waybill.core.errors import InvalidInputError
from waybill.core.plugins import Plugins
from waybill.drivers.model import Command, Drained, Driver, Health, Probe, Put, Release, Run
from waybill.drivers.systemd import DRIVER, Options, unit_name

V1 = Release(
    key="hello/production", id="20261120T125901Z-111111111111", sequence=1, commit=40 * "1",
    root="/var/lib/waybill/hello/production/releases/1", state="/var/lib/waybill/hello/production", user="hello",
    command=("./hello",), environment={}, port=8080, slot=31000, options=Options(), drain=7.0,
    health=Health(path="/health"), secrets="/run/waybill/hello.env",
)  # fmt: skip
V2 = msgspec.structs.replace(V1, id="20261120T125902Z-222222222222", commit=40 * "2", slot=31001)
WORKER = msgspec.structs.replace(V1, key="worker/production", port=None, slot=0, health=None)


def told(commands: list[Command]) -> list[str]:
    """The commands in short."""
    return [" ".join(one.argv[:3]) if isinstance(one, Run) else type(one).__name__ for one in commands]


def nft(commands: list[Command]) -> str:
    return "".join(one.stdin for one in commands if isinstance(one, Run) and one.argv[0] == "nft")


def test_it_is_found_by_its_name():
    assert Plugins[Driver]("waybill.drivers", "DRIVER")["systemd"].traffic == "redirect"


def test_start_writes_the_unit_and_starts_it():
    put, reload, start = DRIVER.plan("start", V2, V1)
    assert isinstance(put, Put) and put.path == f"/etc/systemd/system/{unit_name(V2)}"
    assert told([reload, start]) == ["systemctl daemon-reload", f"systemctl start {unit_name(V2)}"]


@pytest.mark.parametrize("health", [Health(path="/health", within=9), Health(), None])
def test_a_version_is_asked_on_its_own_port_and_must_answer_itself(health: Health | None):
    [probe] = DRIVER.plan("probe", msgspec.structs.replace(V2, health=health), V1)
    assert probe == Probe(port=31001, health=health or Health(), owner=f"unit:{unit_name(V2)}")


def test_one_transaction_sends_users_to_a_version():
    assert told(DRIVER.plan("switch", V2, V1)) == ["nft -f -"]
    assert "redirect to :31001" in nft(DRIVER.plan("switch", V2, V1))


def test_nothing_starts_by_itself_before_its_secrets_are_open():
    commands = [one for step in ("start", "probe", "switch") for one in DRIVER.plan(step, V2, V1)]
    assert not any("enable" in one.argv for one in commands if isinstance(one, Run))
    assert not any("[Install]" in one.content for one in commands if isinstance(one, Put))


def test_the_old_version_drains_before_it_is_stopped_and_keeps_the_port_of_the_new_one():
    commands = list(DRIVER.plan("stop", V1, V2))
    assert told(commands)[:2] == ["Drained", f"systemctl stop {unit_name(V1)}"]
    assert commands[0] == Drained(port=31000, within=7.0)
    assert isinstance(commands[1], Run) and commands[1].timeout > 7.0
    assert nft(commands) == ""


@pytest.mark.parametrize("previous", [None, V1])
def test_a_removed_service_gives_its_port_back_before_it_drains(previous: Release | None):
    commands = list(DRIVER.plan("stop", V1, previous))
    assert told(commands)[:2] == ["nft -f -", "Drained"]
    assert "delete chain inet waybill to_hello/production" in nft(commands)


def test_a_port_that_the_next_version_does_not_have_is_given_back():
    text = nft(DRIVER.plan("stop", V1, msgspec.structs.replace(V2, port=9090)))
    assert "delete element inet waybill ports { 8080 }" in text
    assert "delete chain" not in text


def test_a_service_without_a_port_concerns_no_traffic():
    commands = [one for step in ("start", "probe", "switch", "stop") for one in DRIVER.plan(step, WORKER, None)]
    assert {type(one) for one in commands} == {Put, Run}
    assert nft(commands) == ""
    put = commands[0]
    assert isinstance(put, Put) and "PORT=" not in put.content


def test_a_port_without_a_slot_is_refused():
    with pytest.raises(InvalidInputError, match="slot"):
        DRIVER.plan("start", msgspec.structs.replace(V1, slot=0), None)
