"""A project's issues that can be read and not changed: what a dry run files to."""

from __future__ import annotations

from typing import ClassVar

from waybill.races.ports import Comment, Issue, IssueTracker


class Dry:
    """Reads through, and takes every change for done.

    Args:
        real: Where it reads.
    """

    name: ClassVar[str] = "dry"

    def __init__(self, real: IssueTracker) -> None:
        self._real = real
        self._made: dict[str, Issue] = {}

    def labelled(self, label: str) -> list[Issue]:
        """What there is, and what would be."""
        return [*self._real.labelled(label), *self._made.values()]

    def issue(self, number: str) -> Issue | None:
        """One issue."""
        return self._made.get(number) or self._real.issue(number)

    def create(self, title: str, body: str, labels: list[str]) -> Issue:  # noqa: ARG002 - nothing is made
        """An issue that would be opened."""
        number = str(10**9 + len(self._made))
        self._made[number] = Issue(number=number, title=title, body=body, open=True)
        return self._made[number]

    def comments(self, number: str) -> list[Comment]:
        """The comments that there are."""
        return [] if number in self._made else self._real.comments(number)

    def comment(self, number: str, body: str) -> None:
        """Nothing."""

    def change_comment(self, number: str, comment: str, body: str) -> None:
        """Nothing."""

    def change_body(self, number: str, body: str) -> None:
        """Nothing."""

    def set_open(self, number: str, *, wanted: bool) -> None:
        """Nothing."""

    def add_label(self, number: str, label: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Close the connections."""
        self._real.close()
