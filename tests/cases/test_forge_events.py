"""What the adapters read from payloads: small ones of our own, and the real ones where the folder of data is there."""

from __future__ import annotations

import json
import os
import random
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waybill.core.errors import InvalidInputError, WaybillError
from waybill.core.plugins import Plugins
from waybill.forge.model import Actor, Forge, Ignored, Push, Repository
from waybill.forge.payload import valid_ref

FORGES: Plugins[Forge] = Plugins("waybill.forge.adapters", "FORGE")
OLD, NEW, NONE = "a" * 40, "b" * 40, "0" * 40
ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("WAYBILL_SHARED") or ROOT.parent / "shared")


def hub(**changes):
    told = {
        "ref": "refs/heads/main",
        "before": OLD,
        "after": NEW,
        "repository": {"full_name": "team/app", "clone_url": "https://f.test/team/app.git", "ssh_url": "git@f.test:a"},
        "sender": {"login": "ann", "id": 7},
        "commits": [{"added": ["b"], "modified": ["a"], "removed": []}],
        "total_commits": 1,
    }
    return {**told, **changes}


def gitlab(**changes):
    told = {
        "object_kind": "push",
        "ref": "refs/heads/main",
        "before": OLD,
        "after": NEW,
        "user_id": 7,
        "user_username": "ann",
        "project": {
            "path_with_namespace": "team/app",
            "git_http_url": "https://f.test/team/app.git",
            "git_ssh_url": "git@f.test:a",
        },
        "commits": [{"added": ["b"], "modified": ["a"], "removed": []}],
        "total_commits_count": 1,
    }
    return {**told, **changes}


def read(forge, told, event=None):
    return list(FORGES[forge].read(event or ("Push Hook" if forge == "gitlab" else "push"), json.dumps(told).encode()))


MAKERS = {"github": hub, "gitea": hub, "forgejo": hub, "gitlab": gitlab}


@pytest.mark.parametrize("forge", MAKERS)
def test_a_push_says_the_same_from_every_forge(forge):
    assert read(forge, MAKERS[forge]()) == [
        Push(
            repository=Repository(name="team/app", http_url="https://f.test/team/app.git", ssh_url="git@f.test:a"),
            ref="refs/heads/main",
            kind="branch",
            before=OLD,
            after=NEW,
            actor=Actor(name="ann", id="7"),
            paths=("a", "b"),
        )
    ]


@pytest.mark.parametrize("forge", MAKERS)
def test_created_deleted_tag_and_other_references(forge):
    make = MAKERS[forge]
    (created,) = read(forge, make(before=NONE))
    assert (created.created, created.deleted, created.before, created.paths) == (True, False, None, None)
    (deleted,) = read(forge, make(after=NONE, commits=[]))
    assert (deleted.created, deleted.deleted, deleted.after, deleted.paths) == (False, True, None, None)
    (slashes,) = read(forge, make(ref="refs/heads/feature/x"))
    assert (slashes.kind, slashes.name) == ("branch", "feature/x")
    (other,) = read(forge, make(ref="refs/notes/commits"))
    assert isinstance(other, Ignored)
    assert "refs/notes/commits" in other.reason


def test_a_tag():
    told = gitlab(object_kind="tag_push", ref="refs/tags/v1.0.0", before=NONE)
    (event,) = read("gitlab", told, "Tag Push Hook")
    assert (event.kind, event.name, event.created) == ("tag", "v1.0.0", True)
    (event,) = read("github", hub(ref="refs/tags/v1.0.0", before=NONE))
    assert (event.kind, event.name) == ("tag", "v1.0.0")


def test_paths_are_left_out_when_the_payload_does_not_list_all_commits():
    assert read("gitlab", gitlab(total_commits_count=30))[0].paths is None
    assert read("gitea", hub(total_commits=30))[0].paths is None
    assert read("github", hub(commits=[{"added": ["a"]}] * 2048))[0].paths is None
    assert read("github", hub(commits=[{"added": [str(n) for n in range(5000)]}]))[0].paths is None


def test_github_says_whether_history_was_rewritten_and_gitlab_does_not():
    assert read("github", hub(forced=True))[0].forced is True
    assert read("gitlab", gitlab())[0].forced is None


def test_one_push_of_several_branches_to_a_bare_repository():
    updates = [{"ref": f"refs/heads/{name}", "before": OLD, "after": NEW} for name in ("a", "b")]
    told = {"v": 1, "repository": "team/app", "pusher": "ann", "updates": updates}
    first, second = read("generic", told)
    assert (first.name, second.name, first.actor.name, first.repository.name) == ("a", "b", "ann", "team/app")


def test_system_hooks_of_gitlab_are_read_by_what_is_in_them():
    told = gitlab(object_kind=None, event_name="push")
    assert isinstance(read("gitlab", told, "System Hook")[0], Push)
    assert isinstance(read("gitlab", {"event_name": "project_create"}, "System Hook")[0], Ignored)


def test_an_event_header_that_does_not_fit_the_body_is_refused():
    with pytest.raises(InvalidInputError, match="object_kind"):
        read("gitlab", gitlab(object_kind="merge_request"))


BROKEN = [
    ("github", hub(ref=None), "$.ref"),
    ("github", hub(after="HEAD"), "$.after"),
    ("github", hub(before=OLD.upper()), "$.before"),
    ("github", hub(before=NONE, after=NONE), "neither"),
    ("github", hub(ref="main"), "$.ref"),
    ("github", hub(ref="refs/heads/../../etc"), "$.ref"),
    ("github", hub(ref="refs/heads/a\nb"), "$.ref"),
    ("github", hub(repository={"full_name": 5}), "$.repository.full_name"),
    ("github", hub(repository={"full_name": "a\x00b"}), "$.repository.full_name"),
    ("github", hub(repository={"full_name": ""}), "$.repository.full_name"),
    ("github", hub(repository={}), "full_name"),
    ("github", hub(repository={"full_name": "a/b", "clone_url": "ext::sh -c id"}), "HTTP"),
    ("github", hub(repository={"full_name": "a/b", "clone_url": "https://user:secret@f.test/a"}), "HTTP"),
    ("github", hub(repository={"full_name": "a/b", "ssh_url": "--upload-pack=id"}), "SSH"),
    ("github", hub(commits="x"), "$.commits"),
    ("gitlab", gitlab(project={}), "path_with_namespace"),
    ("gitlab", gitlab(user_id="seven"), "$.user_id"),
    ("gitlab", gitlab(commits=[{"added": [1]}]), "$.commits[0].added[0]"),
    ("generic", {"v": 2, "repository": "a", "updates": []}, "$.v"),
    ("generic", {"v": 1, "repository": "a", "updates": [{"ref": "x", "before": OLD, "after": NEW}]}, "$.updates[0]"),
    ("generic", [], "object"),
]


@pytest.mark.parametrize(("forge", "told", "named"), BROKEN)
def test_what_is_malformed_is_refused_by_its_name(forge, told, named):
    with pytest.raises(InvalidInputError) as refusal:
        read(forge, told)
    assert named in refusal.value.reason
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("forge", FORGES)
@pytest.mark.parametrize(
    "body",
    [b"", b"payload=%7B%7D", b"{", b'{"a":NaN}', b"[" * 100_000, b'{"a":' * 100_000, b"\xff"],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_no_json_is_refused(forge, body):
    for event in ("push", "Push Hook", "ping"):
        with pytest.raises(InvalidInputError):
            FORGES[forge].read(event, body)


def test_the_name_of_who_pushed_is_fit_to_be_shown():
    (event,) = read("github", hub(sender={"login": "ann\x1b[2J\x00" + "x" * 5000, "id": 7}))
    assert event.actor.name.startswith("ann[2Jx")
    assert len(event.actor.name) == 200


ref_parts = st.text(alphabet=st.sampled_from("ab.~^:?*[\\/@{ \x7f\x01é-") | st.characters(codec="utf-8"), max_size=12)


@given(ref_parts | st.sampled_from(["a.lock", "a.lock/b", ".a", "a..b", "@", "a@{1}", "a/", "/a", "a//b", "-a", "a."]))
def test_references_are_judged_as_git_judges_them(part):
    ref = f"refs/heads/{part}"
    if "\x00" in ref:
        assert not valid_ref(ref)
        return
    git = subprocess.run(["git", "check-ref-format", ref], check=False)
    assert valid_ref(ref) == (git.returncode == 0)


@given(st.binary(max_size=400), st.text(max_size=30), st.sampled_from(sorted(FORGES)))
def test_arbitrary_bytes_end_in_a_sentence(body, event, forge):
    with suppress(WaybillError):
        FORGES[forge].read(event, body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.data(), st.sampled_from(sorted(MAKERS)))
def test_a_payload_with_anything_in_one_place_is_read_or_refused(data, forge):
    told = MAKERS[forge]()
    place = told
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(json_values)
        break
    with suppress(InvalidInputError):
        read(forge, told)


header_values = st.text(alphabet=st.characters(codec="latin-1"), max_size=80)
header_names = st.sampled_from(
    [
        "x-hub-signature-256",
        "x-github-event",
        "x-gitea-signature",
        "x-forgejo-signature",
        "x-gitlab-token",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
        "idempotency-key",
        "waybill-delivery",
        "waybill-timestamp",
        "waybill-signature",
    ]
)


@given(
    st.dictionaries(header_names, header_values),
    st.binary(max_size=60),
    st.sampled_from(["s", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_x"]),
    st.sampled_from(sorted(FORGES)),
)
def test_arbitrary_headers_are_never_believed(headers, body, secret, forge):
    if headers.get("x-gitlab-token", "").strip() == secret:
        return
    with pytest.raises(WaybillError):
        FORGES[forge].verify(headers, body, secret, datetime.now(UTC))


def real_payloads() -> list[Path]:
    return sorted(SHARED.glob("data/git*-webhooks/*.json"))


def origin(path: Path) -> tuple[str, str]:
    """Forge and event header of a recorded payload, from the table beside it."""
    table = (path.parent / "README.md").read_text().splitlines()
    row = next(line for line in table if line.startswith(f"| {path.name} "))
    event = row.split("|")[3].strip()
    if path.parent.name == "gitlab-webhooks":
        return "gitlab", event
    return ("gitea" if path.name.startswith("gitea") else "github"), event.split(" ")[0]


@pytest.fixture(scope="module")
def recorded() -> list[Path]:
    paths = real_payloads()
    if not paths:
        pytest.skip("recorded webhook payloads are not there (data/*-webhooks under $WAYBILL_SHARED or ../shared)")
    return paths


def test_every_recorded_payload_is_understood(recorded):
    pushes = {}
    for path in recorded:
        forge, event = origin(path)
        for told in FORGES[forge].read(event, path.read_bytes()):
            assert isinstance(told, Push | Ignored), path.name
            if isinstance(told, Push):
                pushes[path.stem] = (told.repository.name, told.kind, told.name, told.created, told.deleted)
    assert pushes == {
        "gitea-push-event": ("example/example", "branch", "master", True, False),
        "octokit-push": ("Codertocat/Hello-World", "tag", "simple-tag", False, True),
        "octokit-push-with-new-branch": ("Codertocat/Hello-World", "branch", "master", True, False),
        "gogitlab-tag-push": ("jsmith/example", "tag", "v1.0.0", True, False),
        "goplayground-system-tag-event": ("jsmith/example", "tag", "v1.0.0", True, False),
        "goscm-branch-delete": ("gitlab-org/hello-world", "branch", "feature", False, True),
        "goscm-push": ("gitlab-org/hello-world", "branch", "master", False, False),
        "goscm-push-merge": ("gitlab-org/hello-world", "branch", "master", False, False),
        "goscm-tag-create": ("gitlab-org/hello-world", "tag", "v1.0.0", True, False),
        "packit-push-with-many-commits": ("packit-service/rpms/open-vm-tools", "branch", "c9s", False, False),
        "packit-tag-push": ("fedora/src/python-teamcity-messages", "tag", "v1.32", True, False),
    }


def test_recorded_payloads_with_flipped_bytes_are_read_or_refused(recorded):
    chance = random.Random(20261120)
    for path in recorded:
        forge, event = origin(path)
        whole = path.read_bytes()
        for _ in range(60):
            body = bytearray(whole)
            for _ in range(chance.randint(1, 8)):
                body[chance.randrange(len(body))] = chance.randrange(256)
            cut = body[: chance.randrange(len(body))] if chance.random() < 0.2 else body
            for header in (event, "Push Hook" if forge == "gitlab" else "push"):
                with suppress(InvalidInputError):
                    FORGES[forge].read(header, bytes(cut))
