"""What a host does next, as a table and as laws."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from waybill.agent import rules
from waybill.agent.state import Attempt, Home, Live, Placed, Told
from waybill.core.errors import InvalidInputError
from waybill.drivers.model import Release
from waybill.trust import manifest as manifests
from waybill.trust.manifest import Manifest
from waybill.wire.agent import Abandon, Desired, Remove

AT = "2026-11-20T12:00:00.000Z"


def manifest(sequence, commit="a", **other):
    values = {"service": "hello", "environment": "production", "repository": "team/hello", "file": "waybill.yml"}
    return Manifest(**values | {"commit": commit * 40, "sequence": sequence, "issued": AT} | other)


def told(sequence=1, commit="a", **other):
    return Told(
        server="s",
        revision=sequence,
        highest=sequence,
        rollout=other.pop("rollout", f"r{sequence}"),
        manifest=manifests.encode(manifest(sequence, commit)).decode(),
        **other,
    )


def live(sequence, commit="a"):
    release = Release(
        key="hello/production", id=f"live-{sequence}", sequence=sequence, commit=commit * 40, root="/r", state="/s",
        command=("x",), environment={}, options=None,
    )  # fmt: skip
    return Live(placed=Placed(manifest=manifest(sequence, commit), driver="process", release=release))


def attempt(sequence=1, **other):
    values = {"rollout": f"r{sequence}", "release": f"try-{sequence}", "at": AT}
    return Attempt(sequence=sequence, **values | other)


CASES = {
    "nothing was ever said": (Told(), None, None, {}, rules.Rest("waiting")),
    "told for the first time": (told(1), None, None, {}, rules.Begin()),
    "in the middle": (told(1), attempt(1, stage="probing"), None, {}, rules.Continue("probing")),
    "serving": (told(1), attempt(1, stage="switching", release="live-1"), live(1), {}, rules.Rest("live")),
    "the same content under a new sequence": (told(2), None, live(1), {}, rules.Adopt()),
    "another commit": (told(2, "b"), None, live(1), {}, rules.Begin()),
    "superseded": (
        told(3, "c"), attempt(2, stage="probing"), live(1), {},
        rules.Judge("abandoned", "superseded by sequence 3."),
    ),
    "taken back": (
        told(2, "b", abandoned=2), attempt(2), live(1), {}, rules.Judge("abandoned", "the server took it back."),
    ),
    "taken back before it began": (told(2, "b", abandoned=2), None, live(1), {}, rules.Rest("abandoned")),
    "what is live is not taken back": (told(1, abandoned=1), None, live(1), {}, rules.Rest("live")),
    "judged": (told(2, "b"), attempt(2, verdict="failed"), live(1), {}, rules.Undo()),
    "failed stays failed": (told(2, "b"), attempt(2, verdict="failed", cleared=True), live(1), {}, rules.Rest("failed")),
    "failed, wanted again by another rollout": (
        told(2, "b", rollout="again"), attempt(2, verdict="failed", cleared=True), live(1), {}, rules.Begin(),
    ),
    "held": (told(2, "b"), None, live(1), {"held": True}, rules.Rest("held")),
    "held in the middle": (
        told(2, "b"), attempt(2), live(1), {"held": True},
        rules.Judge("held", "a person on this host said hold."),
    ),
    "no longer held": (told(2, "b"), attempt(2, verdict="held", cleared=True), live(1), {}, rules.Begin()),
    "removed": (told(2, removed="ada"), None, live(2), {}, rules.Erase()),
    "removed, half of it is gone": (told(2, removed="ada"), None, None, {"exists": True}, rules.Erase()),
    "gone": (told(2, removed="ada"), None, None, {}, rules.Rest("removed")),
    "going back": (told(2, "b"), attempt(1, rollback=2, stage="starting"), live(2, "b"), {}, rules.Continue("starting")),
    "going back while held": (
        told(2, "b"), attempt(1, rollback=2), live(2, "b"), {"held": True}, rules.Continue("fetching"),
    ),
    "back, and not forward again by itself": (
        told(2, "b"), attempt(1, rollback=2, release="live-1"), live(1), {}, rules.Rest("abandoned"),
    ),
    "back, and something newer comes": (
        told(3, "c"), attempt(1, rollback=2, release="live-1"), live(1), {}, rules.Begin(),
    ),
    "the switch was made, its record was not": (
        told(2, "b"), attempt(2, stage="switching", switching=True), live(1), {}, rules.Continue("switching"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_next_step(case):
    said, tried, serving, other, step = CASES[case]
    assert rules.next_step(said, tried, serving, **{"held": False, "exists": False} | other) == step


sequences = st.integers(1, 6)
commits = st.sampled_from("abc")
messages = st.one_of(
    st.builds(
        lambda revision, sequence, commit, rollout: Desired(
            revision=revision, rollout=rollout, manifest=manifests.encode(manifest(sequence, commit)).decode()
        ),
        st.integers(1, 30),
        sequences,
        commits,
        st.sampled_from("xy"),
    ),
    st.builds(Abandon, revision=st.integers(1, 30), service=st.just("hello"), environment=st.just("production"),
              sequence=sequences),
    st.builds(Remove, revision=st.integers(1, 30), service=st.just("hello"), environment=st.just("production"),
              by=st.just("ada")),
)  # fmt: skip


@given(st.lists(st.tuples(messages, st.sampled_from(["one", "two"]))))
def test_a_host_never_goes_back_and_keeps_what_it_accepted(said):
    known, history = Told(), []
    for message, server in said:
        known = rules.heed(known, message, server, ["hello/*"], AT)
        history.append(known)
        again = rules.heed(known, message, server, ["hello/*"], AT)
        assert again == known, "a doubled message changes nothing"
    for before, after in pairwise(history):
        assert after.highest >= before.highest
        assert after.abandoned >= before.abandoned
        if before.highest == after.highest and before.manifest:
            assert after.manifest == before.manifest, "a sequence names one manifest"
        if after.wanted():
            assert after.wanted().sequence == after.highest


@given(st.lists(messages), st.lists(messages))
def test_without_a_removal_nothing_is_erased(first, second):
    known = Told()
    for message in first + second:
        if not isinstance(message, Remove):
            known = rules.heed(known, message, "s", ["hello/*"], AT)
    assert rules.next_step(known, None, live(1), held=False, exists=True) != rules.Erase()


attempts = st.none() | st.builds(
    attempt,
    sequences,
    rollout=st.sampled_from("xy"),
    stage=st.sampled_from(["fetching", "preparing", "starting", "probing", "switching"]),
    verdict=st.sampled_from(["", "failed", "refused", "abandoned", "held"]),
    cleared=st.booleans(),
)
lives = st.none() | st.builds(live, sequences, commits)


@given(st.lists(messages), attempts, lives, st.booleans())
def test_every_state_leads_to_rest(said, tried, serving, held):
    """Performing each step as the loop does, always well, ends; and what serves is never taken away on the way."""
    known = Told()
    for message in said:
        known = rules.heed(known, message, "s", ["hello/*"], AT)
    for _ in range(12):
        step = rules.next_step(known, tried, serving, held=held, exists=serving is not None)
        match step:
            case rules.Rest():
                break
            case rules.Begin():
                tried = attempt(known.highest, rollout=known.rollout)
            case rules.Continue("switching"):
                serving = Live(
                    placed=Placed(
                        manifest=known.wanted(),
                        driver="process",
                        release=msgspec.structs.replace(live(1).placed.release, id=tried.release),
                    )
                )
            case rules.Continue(stage):
                order = ["fetching", "preparing", "starting", "probing", "switching"]
                tried = msgspec.structs.replace(tried, stage=order[order.index(stage) + 1])
            case rules.Adopt():
                serving = msgspec.structs.replace(
                    serving, placed=msgspec.structs.replace(serving.placed, manifest=known.wanted())
                )
            case rules.Judge(verdict, reason):
                tried = msgspec.structs.replace(tried, verdict=verdict, reason=reason)
            case rules.Undo():
                tried = msgspec.structs.replace(tried, cleared=True)
            case rules.Erase():
                assert known.removed
                tried = serving = None
    else:
        raise AssertionError(f"never at rest: {step}")


@pytest.mark.parametrize(
    ("key", "patterns", "accepted"),
    [
        ("hello/production", ["hello/production"], True),
        ("hello/production", ["hello/*"], True),
        ("hello/production", ["*/production"], True),
        ("hello/staging", ["*/production"], False),
        ("hello-evil/production", ["hello/*"], False),
        ("hello/production", [], False),
        ("hello/production", ["*"], True),
        ("a/b/production", ["a/production"], False),
    ],
)
def test_the_hosts_own_list(key, patterns, accepted):
    assert rules.allowed(key, patterns) is accepted


def test_refusals_are_sentences():
    known = told(5)
    old = Desired(revision=9, rollout="x", manifest=manifests.encode(manifest(4)).decode())
    heard = rules.heed(known, old, "s", ["hello/*"], AT)
    assert heard.refusal.sequence == 4 and "never goes back" in heard.refusal.reason and heard.highest == 5
    other = Desired(revision=9, rollout="x", manifest=manifests.encode(manifest(5, "b")).decode())
    assert "another manifest" in rules.heed(known, other, "s", ["hello/*"], AT).refusal.reason
    new = Desired(revision=9, rollout="x", manifest=manifests.encode(manifest(6)).decode())
    assert "own list allows api/*" in rules.heed(known, new, "s", ["api/*"], AT).refusal.reason
    assert rules.heed(heard, msgspec.structs.replace(new, revision=10), "s", ["hello/*"], AT).refusal is None


@given(
    st.text(max_size=80)
    | st.builds(
        lambda **values: manifests.encode(Manifest(**values)).decode(),
        service=st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
        environment=st.sampled_from(["production", "..", "", "a/b", "\0"]),
        repository=st.just("team/hello"),
        commit=st.sampled_from(["a" * 40, "a" * 64, "../../../../etc", "", "A" * 40, "HEAD"]),
        file=st.just("waybill.yml"),
        sequence=st.integers(-3, 3),
        issued=st.just(AT),
        build=st.sampled_from([None, "sha256:" + "0" * 64, "sha256:../..", ""]),
    )
)
def test_whatever_a_server_sends_is_taken_or_refused_with_a_sentence(tmp_path_factory, text):
    home = Home(tmp_path_factory.getbasetemp() / "never-written")
    message = Desired(revision=1, rollout="r", manifest=text)
    try:
        folder = home.service(*rules.subject(message))
        heard = rules.heed(folder.told(), message, "s", ["*"], AT)
    except InvalidInputError:
        return
    assert folder.path.parent == home.root / "services"
    assert heard.wanted().commit in ("a" * 40, "a" * 64) and heard.highest > 0
