"""GitHub's issues, REST API of 2022-11-28; also GitHub Enterprise Server, at ``https://HOST/api/v3``."""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import quote

from waybill.infra.http import Rest
from waybill.races.ports import Comment, Issue, Place

INSIDERS = frozenset({"OWNER", "MEMBER", "COLLABORATOR"})


class GitHub:
    """One repository.

    Args:
        place: The repository; the token needs to read and write issues.
    """

    name: ClassVar[str] = "github"

    def __init__(self, place: Place) -> None:
        headers = {
            "authorization": f"Bearer {place.token}",
            "accept": "application/vnd.github+json",
            "x-github-api-version": "2022-11-28",
        }
        self._rest = Rest(place.url, headers, place.ca or None)
        self._repository = f"/repos/{quote(place.project)}"

    def labelled(self, label: str) -> list[Issue]:
        """All issues with this label; pull requests stand in the same list."""
        params: dict[str, str | int] = {"labels": label, "state": "all", "per_page": 100}
        found = self._rest.pages(f"{self._repository}/issues", params)
        return [_issue(told) for told in found if "pull_request" not in told]

    def issue(self, number: str) -> Issue | None:
        """One issue."""
        answer = self._rest.call("GET", f"{self._repository}/issues/{number}", missing=True)
        return None if answer.status == 404 or "pull_request" in answer.body else _issue(answer.body)

    def create(self, title: str, body: str, labels: list[str]) -> Issue:
        """A new issue."""
        told = {"title": title, "body": body, "labels": labels}
        return _issue(self._rest.call("POST", f"{self._repository}/issues", told).body)

    def comments(self, number: str) -> list[Comment]:
        """All comments."""
        found = self._rest.pages(f"{self._repository}/issues/{number}/comments", {"per_page": 100})
        return [
            Comment(
                id=str(told["id"]),
                body=str(told.get("body") or ""),
                trusted=str(told.get("author_association") or "") in INSIDERS,
            )
            for told in found
        ]

    def comment(self, number: str, body: str) -> None:
        """Add a comment."""
        self._rest.call("POST", f"{self._repository}/issues/{number}/comments", {"body": body})

    def change_comment(self, number: str, comment: str, body: str) -> None:  # noqa: ARG002 - ids are the repository's
        """Replace a comment's text."""
        self._rest.call("PATCH", f"{self._repository}/issues/comments/{comment}", {"body": body})

    def change_body(self, number: str, body: str) -> None:
        """Replace an issue's text."""
        self._rest.call("PATCH", f"{self._repository}/issues/{number}", {"body": body})

    def set_open(self, number: str, *, wanted: bool) -> None:
        """Open or close an issue."""
        told = {"state": "open" if wanted else "closed"}
        self._rest.call("PATCH", f"{self._repository}/issues/{number}", told)

    def add_label(self, number: str, label: str) -> None:
        """Add a label."""
        self._rest.call("POST", f"{self._repository}/issues/{number}/labels", {"labels": [label]})

    def close(self) -> None:
        """Close the connections."""
        self._rest.close()


def _issue(told: dict[str, Any]) -> Issue:
    return Issue(
        number=str(told["number"]),
        title=str(told.get("title") or ""),
        body=str(told.get("body") or ""),
        open=told.get("state") == "open",
        closed=str(told.get("closed_at") or ""),
        url=str(told.get("html_url") or ""),
    )


TRACKER = GitHub
