"""One suite for every forge: against the strict fake, and against a real GitLab named by GITLAB_URL.

For a real one set GITLAB_URL, GITLAB_TOKEN (scope api) and GITLAB_PROJECT, an empty project to be filled with issues.
"""

from __future__ import annotations

import os
import time
import uuid

import pytest

from support.need import elsewhere
from support.races import fake_forge
from waybill.core.errors import NotFoundError, UnauthenticatedError, UnavailableError, WaybillError
from waybill.core.plugins import Plugins
from waybill.races.ports import Place

ADAPTERS = Plugins("waybill.races.adapters", "TRACKER")


@pytest.fixture(scope="module")
def forge():
    with fake_forge() as running:
        yield running


@pytest.fixture(params=[*sorted(ADAPTERS), "a real gitlab"])
def tracker(request, forge):
    if request.param == "a real gitlab":
        names = ("GITLAB_URL", "GITLAB_PROJECT", "GITLAB_TOKEN")
        if not all(os.environ.get(name) for name in names):
            elsewhere("a real GitLab: " + ", ".join(names))
        url, project, token = (os.environ[name] for name in names)
        made = ADAPTERS["gitlab"](Place(url=url, project=project, token=token))
    else:
        forge.tell("reset")
        made = ADAPTERS[request.param](forge.place)
    yield made
    made.close()


@pytest.fixture
def label():
    return f"Race conditions {uuid.uuid4().hex[:8]}"


def until(check, seconds=30):
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def test_the_forges_are_found_by_name():
    assert set(ADAPTERS) == {"gitlab", "github", "gitea"}


def test_an_issue_is_opened_found_closed_and_opened_again(tracker, label):
    assert tracker.labelled(label) == []
    made = tracker.create("Data race: a / b", "<!-- hidden -->\ntext", [label, f"{label} more"])
    assert (made.open, made.closed, made.title, made.body) == (True, "", "Data race: a / b", "<!-- hidden -->\ntext")
    [found] = until(lambda: tracker.labelled(label))
    assert found == made == tracker.issue(made.number)
    tracker.set_open(made.number, wanted=False)
    closed = tracker.issue(made.number)
    assert (closed.open, bool(closed.closed)) == (False, True)
    assert [issue.number for issue in tracker.labelled(label)] == [made.number]
    tracker.set_open(made.number, wanted=True)
    assert tracker.issue(made.number).open
    tracker.set_open(made.number, wanted=True)


def test_text_and_labels_change(tracker, label):
    made = tracker.create("Data race: a / b", "text", [label])
    tracker.change_body(made.number, "another text")
    tracker.add_label(made.number, f"{label} two")
    assert tracker.issue(made.number).body == "another text"
    assert [issue.number for issue in until(lambda: tracker.labelled(f"{label} two"))] == [made.number]
    assert tracker.labelled(label)


def test_comments_are_added_and_changed_in_order(tracker, label):
    made = tracker.create("Data race: a / b", "text", [label])
    for number in range(20):  # more than a page
        tracker.comment(made.number, f"comment {number}")
    found = tracker.comments(made.number)
    assert [one.body for one in found if one.body.startswith("comment")] == [f"comment {n}" for n in range(20)]
    assert all(one.trusted for one in found)
    tracker.change_comment(made.number, found[3].id, "changed")
    assert tracker.comments(made.number)[3].body == "changed"
    assert len(tracker.comments(made.number)) == len(found)


def test_lists_have_all_pages(tracker, label):
    numbers = {tracker.create(f"Data race: {n}", "text", [label]).number for n in range(16)}
    assert until(lambda: {issue.number for issue in tracker.labelled(label)} >= numbers)
    assert {issue.number for issue in tracker.labelled(label)} == numbers


def test_what_is_not_there_is_none_or_an_error(tracker):
    assert tracker.issue("987654") is None
    with pytest.raises(NotFoundError):
        tracker.comment("987654", "text")


# what only the fake can be told to do


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_a_limit_is_waited_for(forge, name, label):
    forge.tell("reset")
    tracker = ADAPTERS[name](forge.place)
    forge.tell("fault", what="POST .*issues$", how="429", times=2, headers={"Retry-After": "0"})
    assert tracker.create("Data race: a / b", "text", [label]).number == "1"
    assert len(forge.issues) == 1
    tracker.close()


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_a_limit_of_hours_is_not_waited_for(forge, name):
    forge.tell("reset")
    tracker = ADAPTERS[name](forge.place)
    forge.tell("fault", what="GET", how="429", times=9, headers={"Retry-After": "7200"})
    with pytest.raises(UnavailableError, match="7200"):
        tracker.labelled("x")
    tracker.close()


@pytest.mark.parametrize("name", sorted(ADAPTERS))
@pytest.mark.parametrize("how", ["before", "after"])
def test_a_lost_answer_is_not_asked_for_again(forge, name, how, label):
    forge.tell("reset")
    tracker = ADAPTERS[name](forge.place)
    tracker.labelled(label)
    forge.tell("fault", what="POST .*issues$", how=how)
    with pytest.raises(UnavailableError):
        tracker.create("Data race: a / b", "text", [label])
    assert len(forge.issues) == (1 if how == "after" else 0)
    tracker.close()


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_a_wrong_token_is_refused_and_never_repeated_in_words(forge, name):
    tracker = ADAPTERS[name](Place(url=forge.url, project=forge.place.project, token="glpat-wrong-secret"))
    with pytest.raises(UnauthenticatedError) as told:
        tracker.labelled("x")
    assert "wrong-secret" not in str(told.value)
    tracker.close()


def test_an_outsider_on_github_is_not_trusted(forge, label):
    forge.tell("reset")
    tracker = ADAPTERS["github"](forge.place)
    made = tracker.create("Data race: a / b", "text", [label])
    forge.tell("person", issue=made.number, comment="Duplicate of #7", insider=False)
    assert [one.trusted for one in tracker.comments(made.number)] == [False]
    tracker.close()


def test_gitlab_tells_what_a_person_declared_a_duplicate(forge, label):
    forge.tell("reset")
    tracker = ADAPTERS["gitlab"](forge.place)
    first, second = (tracker.create(f"Data race: {n}", "text", [label]) for n in "ab")
    forge.tell("person", issue=second.number, duplicate_of=int(first.number))
    assert tracker.issue(second.number).duplicate_of == first.number
    tracker.close()


def test_pages_of_another_server_are_not_followed(forge):
    from waybill.infra.http import Rest

    rest = Rest(forge.url, {"private-token": "t"})
    with pytest.raises(WaybillError, match="another server"):
        rest.call("GET", "https://elsewhere.example/api/v4/projects")
    rest.close()
