"""Gitea's and Forgejo's issues, REST API version 1. Labels are given by number there, so they are looked up."""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import quote

from waybill.infra.http import Rest
from waybill.races.ports import Comment, Issue, Place

COLOUR = "#d93f0b"
PAGE = 50
"""Items of a page; the server's own limit by default."""


class Gitea:
    """One repository.

    Args:
        place: The repository; the token needs to read and write issues.
    """

    name: ClassVar[str] = "gitea"

    def __init__(self, place: Place) -> None:
        headers = {"authorization": f"token {place.token}"}
        self._rest = Rest(place.url.rstrip("/") + "/api/v1", headers, place.ca or None)
        self._repository = f"/repos/{quote(place.project)}"

    def labelled(self, label: str) -> list[Issue]:
        """All issues with this label; a label that does not exist would list all issues, so it is made first."""
        self._label(label)
        params: dict[str, str | int] = {"type": "issues", "state": "all", "labels": label, "limit": PAGE}
        return [_issue(told) for told in self._rest.pages(f"{self._repository}/issues", params)]

    def issue(self, number: str) -> Issue | None:
        """One issue."""
        answer = self._rest.call("GET", f"{self._repository}/issues/{number}", missing=True)
        return None if answer.status == 404 or answer.body.get("pull_request") else _issue(answer.body)

    def create(self, title: str, body: str, labels: list[str]) -> Issue:
        """A new issue."""
        told = {"title": title, "body": body, "labels": [self._label(label) for label in labels]}
        return _issue(self._rest.call("POST", f"{self._repository}/issues", told).body)

    def comments(self, number: str) -> list[Comment]:
        """All comments, in one answer."""
        found = self._rest.call("GET", f"{self._repository}/issues/{number}/comments").body or []
        return [Comment(id=str(told["id"]), body=str(told.get("body") or "")) for told in found]

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
        self._rest.call("POST", f"{self._repository}/issues/{number}/labels", {"labels": [self._label(label)]})

    def close(self) -> None:
        """Close the connections."""
        self._rest.close()

    def _label(self, name: str) -> int:
        """The number of a label."""
        for told in self._rest.pages(f"{self._repository}/labels", {"limit": PAGE}):
            if told.get("name") == name:
                return int(told["id"])
        made = self._rest.call("POST", f"{self._repository}/labels", {"name": name, "color": COLOUR}).body
        return int(made["id"])


def _issue(told: dict[str, Any]) -> Issue:
    return Issue(
        number=str(told["number"]),
        title=str(told.get("title") or ""),
        body=str(told.get("body") or ""),
        open=told.get("state") == "open",
        closed=str(told.get("closed_at") or ""),
        url=str(told.get("html_url") or ""),
    )


TRACKER = Gitea
