"""What happens with race reports, in the past tense."""

from __future__ import annotations

from waybill.events.model import EventBody


class RacesReported(EventBody, frozen=True, kw_only=True):
    """A machine sent reports that were new."""

    host: str
    new: int

    def subject(self) -> str:
        return self.host

    def sentence(self) -> str:
        return f"{self.host} reported {self.new} data race{'' if self.new == 1 else 's'}"


class RaceFiled(EventBody, frozen=True, kw_only=True):
    """An issue was opened for a race, or opened again."""

    key_id: str
    title: str
    issue: str
    what: str
    url: str = ""

    def subject(self) -> str:
        return f"race {self.key_id}"

    def sentence(self) -> str:
        return f"{self.title}: issue #{self.issue} {self.what}"


class RaceDecided(EventBody, frozen=True, kw_only=True):
    """A person said what is to become of a report."""

    report: str
    what: str
    issue: str = ""

    def subject(self) -> str:
        return f"race report {self.report}"

    def sentence(self) -> str:
        return f"race report {self.report[:12]}: {self.what} {self.issue}".strip()
