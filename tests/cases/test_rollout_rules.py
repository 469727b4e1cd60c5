"""What a rollout does next, as a table and as properties."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waybill.deploy.model import RolloutHost
from waybill.deploy.rules import End, Revert, Tell, Wait, after_revert, next_step
from waybill.wire.agent import FINAL


def host(name, state="untold", told=1.0, away=0.0, reason=""):
    told = 0.0 if state == "untold" else told
    return RolloutHost(host=name, state=state, told=told, away=away, reason=reason, sequence=0 if told == 0 else 1)


CASES = [
    ("all are told at once", [host("a"), host("b")], {}, Tell(hosts=("a", "b"))),
    ("one by one begins with one", [host("a"), host("b")], {"order": "one-by-one"}, Tell(hosts=("a",))),
    ("one by one waits", [host("a", "probing"), host("b")], {"order": "one-by-one"}, Wait),
    ("one by one goes on", [host("a", "live"), host("b")], {"order": "one-by-one"}, Tell(hosts=("b",))),
    ("the first alone", [host("a"), host("b"), host("c")], {"order": "first-then-rest"}, Tell(hosts=("a",))),
    ("then the rest", [host("a", "live"), host("b"), host("c")], {"order": "first-then-rest"}, Tell(hosts=("b", "c"))),
    ("all live is done", [host("a", "live"), host("b", "live")], {}, End(state="done")),
    ("still at it", [host("a", "live"), host("b", "fetching")], {}, Wait),
    ("one failure takes all back", [host("a", "live"), host("b", "failed", reason="500")], {}, Revert(hosts=("a", "b"), reason="b: 500")),
    ("the untold stay untouched", [host("a", "failed", reason="x"), host("b")], {}, Revert(hosts=("a",), reason="a: x")),
    ("too slow is failed", [host("a", "probing", told=11)], {"limit": 10}, Revert(hosts=("a",), reason="a: still probing after 10 s")),
    ("one away is waited for", [host("a", "live"), host("b", "waiting", told=3, away=3)], {}, Wait),
    (
        "and then not",
        [host("a", "live"), host("b", "waiting", told=99, away=99)],
        {},
        End(state="done", reason="1 of 2 hosts are away and switch when they return: b"),
    ),
    ("held by a person", [host("a", "live"), host("b", "held")], {}, End(state="done", reason="held by a person on the host: b")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("hosts", "options", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_next_step(hosts, options, expected):
    step = next_step(hosts, **options)
    assert isinstance(step, expected) if isinstance(expected, type) else step == expected


def test_a_revert_ends_when_all_that_are_here_are_back():
    assert isinstance(after_revert([host("a", "live"), host("b", "probing")]), Wait)
    assert after_revert([host("a", "live"), host("b", "waiting", told=99, away=99)]) == End(state="reverted")
    stuck = after_revert([host("a", "failed", reason="disk full")])
    assert isinstance(stuck, End)
    assert stuck.state == "failed"
    assert "disk full" in stuck.reason


@st.composite
def fleets(draw):
    size = draw(st.integers(1, 12))
    return [f"h{index}" for index in range(size)], draw(st.sampled_from(["together", "one-by-one", "first-then-rest"]))


@settings(max_examples=300)
@given(fleets(), st.randoms(use_true_random=False))
def test_every_rollout_ends_whatever_its_hosts_do(fleet, chance):
    """Simulated hosts answer, fail, hang or go away in any order: the rollout always ends, within its limit."""
    names, order = fleet
    hosts = {name: host(name) for name in names}
    fate = {name: chance.choice(["live", "live", "live", "failed", "hangs", "away", "held"]) for name in names}
    clock = dict.fromkeys(names, 0.0)
    for _ in range(400):
        step = next_step(list(hosts.values()), order=order, limit=60)
        if isinstance(step, Tell):
            assert all(hosts[name].state == "untold" for name in step.hosts)
            if order == "one-by-one":
                assert len(step.hosts) == 1
                here = [one for one in hosts.values() if one.state not in FINAL and one.state != "untold"]
                assert all(one.away for one in here)
            for name in step.hosts:
                hosts[name] = host(name, "waiting", told=0.01, away=0.01 if fate[name] == "away" else 0.0)
        elif isinstance(step, Wait):
            assert step.seconds > 0
            for name, one in hosts.items():
                if one.state != "waiting":
                    continue
                clock[name] += step.seconds
                if fate[name] in ("live", "failed", "held"):
                    hosts[name] = host(name, fate[name], told=clock[name])
                else:
                    hosts[name] = host(
                        name, told=clock[name], state="waiting", away=clock[name] if fate[name] == "away" else 0
                    )
        else:
            break
    else:
        pytest.fail("it never ended")
    told = {name for name, one in hosts.items() if one.state != "untold"}
    if isinstance(step, End):
        assert step.state == "done"
        assert told == set(names)
        assert not any(fate[name] in ("failed", "hangs") for name in told)
    else:
        assert set(step.hosts) == told
        assert any(fate[name] in ("failed", "hangs") for name in told)
