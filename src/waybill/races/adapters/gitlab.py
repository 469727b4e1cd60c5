"""GitLab's issues, REST API version 4."""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import quote

from waybill.infra.http import Rest
from waybill.races.ports import Comment, Issue, Place


class GitLab:
    """One project.

    Args:
        place: The project; the token needs the scope ``api`` and the role Reporter.
    """

    name: ClassVar[str] = "gitlab"

    def __init__(self, place: Place) -> None:
        headers = {"private-token": place.token}
        self._rest = Rest(place.url.rstrip("/") + "/api/v4", headers, place.ca or None)
        self._issues = f"/projects/{quote(place.project, safe='')}/issues"

    def labelled(self, label: str) -> list[Issue]:
        """All issues with this label."""
        params: dict[str, str | int] = {"labels": label, "state": "all", "scope": "all", "per_page": 100}
        return [_issue(told) for told in self._rest.pages(self._issues, params)]

    def issue(self, number: str) -> Issue | None:
        """One issue."""
        answer = self._rest.call("GET", f"{self._issues}/{number}", missing=True)
        return None if answer.status == 404 else _issue(answer.body)

    def create(self, title: str, body: str, labels: list[str]) -> Issue:
        """A new issue."""
        told = {"title": title, "description": body, "labels": ",".join(labels)}
        return _issue(self._rest.call("POST", self._issues, told).body)

    def comments(self, number: str) -> list[Comment]:
        """All notes, those of the system included: they say what was declared a duplicate."""
        params: dict[str, str | int] = {"sort": "asc", "order_by": "created_at", "per_page": 100}
        found = self._rest.pages(f"{self._issues}/{number}/notes", params)
        return [Comment(id=str(told["id"]), body=str(told.get("body") or "")) for told in found]

    def comment(self, number: str, body: str) -> None:
        """Add a note."""
        self._rest.call("POST", f"{self._issues}/{number}/notes", {"body": body})

    def change_comment(self, number: str, comment: str, body: str) -> None:
        """Replace a note's text."""
        self._rest.call("PUT", f"{self._issues}/{number}/notes/{comment}", {"body": body})

    def change_body(self, number: str, body: str) -> None:
        """Replace an issue's description."""
        self._rest.call("PUT", f"{self._issues}/{number}", {"description": body})

    def set_open(self, number: str, *, wanted: bool) -> None:
        """Open or close an issue."""
        self._rest.call("PUT", f"{self._issues}/{number}", {"state_event": "reopen" if wanted else "close"})

    def add_label(self, number: str, label: str) -> None:
        """Add a label."""
        self._rest.call("PUT", f"{self._issues}/{number}", {"add_labels": label})

    def close(self) -> None:
        """Close the connections."""
        self._rest.close()


def _issue(told: dict[str, Any]) -> Issue:
    duplicate = str((told.get("_links") or {}).get("closed_as_duplicate_of") or "")
    same_project = f"/projects/{told.get('project_id')}/issues/" in duplicate
    return Issue(
        number=str(told["iid"]),
        title=str(told.get("title") or ""),
        body=str(told.get("description") or ""),
        open=told.get("state") == "opened",
        closed=str(told.get("closed_at") or ""),
        url=str(told.get("web_url") or ""),
        duplicate_of=duplicate.rpartition("/")[2] if same_project else "",
    )


TRACKER = GitLab
