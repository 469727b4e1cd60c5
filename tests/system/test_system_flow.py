"""The main job on three real Debian hosts: push, switch under load, a bad version, a revert, a reboot without a server."""

from __future__ import annotations

import contextlib

import pytest

from system.hosts import Fleet, wait_for
from system.load import Load
from system.platform import PORT, Platform, ask

pytestmark = [pytest.mark.flow, pytest.mark.system]
SECRET = 'it\'s "50%" $HOME \\'


@pytest.fixture(scope="module")
def platform(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory):
    """Three hosts on which version 1 serves."""
    platform = Platform(fleet, tmp_path_factory.mktemp("platform"))
    try:
        platform.start_server()
        platform.enrol("web1", "web2", "web3")
        platform.make_repository()
        platform.push("1")
        platform.await_versions("1")
        yield platform
    finally:
        platform.stop_server()


def test_a_push_is_live_on_every_host_with_its_secret(platform: Platform):
    assert [ask(host)["secret"] for host in platform.hosts] == [SECRET] * 3
    for host in platform.hosts:
        seen = host.run(["sh", "-c", "cat /etc/systemd/system/waybill-*; journalctl; ps axww"]).stdout
        assert "50%" not in seen
        assert host.run(["stat", "-f", "-c", "%T", "/run/waybill"]).stdout == "tmpfs\n"


def test_a_push_under_load_loses_no_request(platform: Platform):
    with contextlib.ExitStack() as stack:
        loads = [stack.enter_context(Load(host.address, PORT, users=1)) for host in platform.hosts]
        wait_for(lambda: all(len(load.answers) > 50 for load in loads), "the load to begin")
        commit = platform.push("2")
        took = platform.await_versions("2")
        wait_for(lambda: platform.rollout(commit).get("state") == "done", "the rollout to end", 30)
        wait_for(lambda: all(units(host) == 1 for host in platform.hosts), "the old versions to end", 30)
    print(f"\nlive on three hosts {took:.2f} s after the push, {sum(len(load.answers) for load in loads)} requests")
    assert [load.lost for load in loads] == [[], [], []]
    assert all({answer.version for answer in load.answers} == {"1", "2"} for load in loads)


def test_a_broken_version_reaches_nobody_and_is_shown(platform: Platform):
    before = platform.versions()
    with Load(platform.hosts[0].address, PORT, users=1) as load:
        commit = platform.push("3", "broken")
        wait_for(lambda: platform.rollout(commit).get("state") in ("failed", "reverted"), "the rollout to fail", 60)
    assert platform.versions() == before
    assert load.lost == [] and {answer.version for answer in load.answers} == set(before)
    assert "500" in platform.rollout(commit)["reason"]
    platform.git("revert", "--no-edit", "HEAD")
    platform.git("push", "-q", "origin", "main")


def test_a_revert_brings_the_version_before_back(platform: Platform):
    platform.push("4")
    platform.await_versions("4")
    platform.git("revert", "--no-edit", "HEAD")
    platform.git("push", "-q", "origin", "main")
    platform.await_versions("2")


def test_a_rebooted_host_serves_again_without_the_server(platform: Platform):
    platform.push("5")
    platform.await_versions("5")
    platform.stop_server()
    host = platform.hosts[0]
    host.power_cut()
    host.boot()
    told = wait_for(lambda: ask(host), "the service to be back", 30)
    assert (told["version"], told["secret"]) == ("5", SECRET)
    platform.start_server()
    wait_for(lambda: platform.known_hosts()["web1"]["connected"], "the host to connect again", 60)
    platform.push("6")
    platform.await_versions("6")


def test_a_host_that_was_cut_off_catches_up(platform: Platform):
    away = platform.hosts[1]
    away.partition()
    platform.push("7")
    wait_for(lambda: [v for v in platform.versions() if v == "7"] == ["7"] * 2, "the other two hosts", 60)
    away.heal()
    platform.await_versions("7", 90)


def test_the_agent_is_restarted_and_no_service_with_it(platform: Platform):
    before = [ask(host)["pid"] for host in platform.hosts]
    for host in platform.hosts:
        host.run(["systemctl", "restart", "waybill-agent"])
        host.run(["systemctl", "kill", "--signal=KILL", "waybill-agent"])
    wait_for(lambda: all(host["connected"] for host in platform.known_hosts().values()), "all agents to be back", 60)
    assert [ask(host)["pid"] for host in platform.hosts] == before


def test_rules_that_somebody_flushed_return(platform: Platform):
    host = platform.hosts[2]
    host.run(["nft", "flush", "ruleset"])
    assert ask(host) == {}
    host.run(["systemctl", "restart", "waybill-agent"])
    wait_for(lambda: ask(host), "users to reach the service again", 30)


def test_a_full_disk_keeps_what_serves_and_catches_up_once_there_is_room(platform: Platform):
    host = platform.hosts[2]
    before = ask(host)["pid"]
    host.fill_disk()
    try:
        platform.push("8")
        wait_for(lambda: platform.versions()[:2] == ["8", "8"], "the other two hosts", 60)
        assert ask(host)["pid"] == before
        host.power_cut()
        host.boot(healthy=False)  # systemd finds no room for the service's private /tmp, and tries again
    finally:
        host.free_disk()
    platform.await_versions("8", 90)


def units(host) -> int:
    """How many versions of the service run on a host."""
    listed = host.run(["systemctl", "list-units", "--plain", "--no-legend", "waybill-hello.*"]).stdout
    return len(listed.splitlines())
