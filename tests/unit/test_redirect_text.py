"""Slots are handed out soundly, and no text for nftables holds what was not meant for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waybill.core.errors import ConflictError, InvalidInputError
from waybill.drivers.redirect import SLOTS, Route, allocate, restore, switch, withdraw

slots = st.sampled_from(SLOTS)


@given(st.sets(slots, max_size=len(SLOTS) - 1), slots | st.just(0))
def test_a_slot_is_never_one_in_use(used: set[int], after: int):
    assert allocate(used, after) in set(SLOTS) - used


def test_a_slot_rests_before_it_is_used_again():
    given_out, last = [], 0
    for _ in SLOTS:
        last = allocate([], last)
        given_out.append(last)
    assert len(set(given_out)) == len(SLOTS)


def test_no_slot_left_is_told():
    with pytest.raises(ConflictError, match="taken"):
        allocate(SLOTS, 31500)


def test_slots_are_no_ports_of_outgoing_connections():
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if (low, high) == (32768, 60999):  # Linux' own choice; a host may have another
        assert not set(SLOTS) & set(range(low, high + 1))


@given(st.text(max_size=80), st.integers(-1, 70000), st.integers(-1, 70000))
def test_a_name_or_port_that_nftables_might_misread_is_refused(key: str, port: int, slot: int):
    try:
        text = switch(Route(key=key, port=port, slot=slot)) + withdraw(key, port, last=True)
    except InvalidInputError:
        return
    own = {line for line in text.splitlines() if key in line}
    assert all(line.split()[2:4] == ["inet", "waybill"] for line in text.splitlines())
    assert own and 1 <= port <= 65535 and slot in SLOTS and port not in SLOTS


def test_names_that_the_agent_knows_are_taken():
    assert "to_shop-api_2.x/pre-production.eu " in switch(
        Route(key="shop-api_2.x/pre-production.eu", port=1, slot=31000)
    )


def test_only_the_own_table_is_named():
    routes = [Route(key="a/b", port=80, slot=31000), Route(key="c/d", port=81, slot=31001)]
    for text in (switch(routes[0]), withdraw("a/b", 80, last=False), restore(routes), restore([])):
        assert {line.split(" ")[3] for line in text.splitlines()} == {"waybill"}
        assert "flush ruleset" not in text
