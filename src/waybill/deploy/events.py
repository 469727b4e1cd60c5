"""What happens in deploying, in the past tense."""

from __future__ import annotations

from waybill.events.model import EventBody


class PushReceived(EventBody, frozen=True, kw_only=True):
    """A forge or a git hook says that a branch moved: a hint, nothing is believed of it but the repository's name."""

    repository: str
    branch: str
    claimed: str = ""
    pusher: str = ""

    def subject(self) -> str:
        return self.repository

    def sentence(self) -> str:
        who = f" by {self.pusher}" if self.pusher else ""
        return f"{self.repository}: a push to {self.branch} was announced{who}"


class BranchMoved(EventBody, frozen=True, kw_only=True):
    """The server itself saw a branch at another commit than before."""

    repository: str
    branch: str
    commit: str
    before: str = ""
    forced: bool = False
    pusher: str = ""

    def subject(self) -> str:
        return self.repository

    def sentence(self) -> str:
        how = " (forced)" if self.forced else ""
        return f"{self.repository}: {self.branch} is at {self.commit[:12]}{how}"


class BranchGone(EventBody, frozen=True, kw_only=True):
    """A branch that was seen is no longer there; what it deployed keeps running."""

    repository: str
    branch: str

    def subject(self) -> str:
        return self.repository

    def sentence(self) -> str:
        return f"{self.repository}: {self.branch} was deleted; what runs keeps running"


class RepositoryAway(EventBody, frozen=True, kw_only=True):
    """A repository that could be fetched no longer can; it is tried again and again."""

    repository: str
    reason: str

    def subject(self) -> str:
        return self.repository

    def sentence(self) -> str:
        return f"{self.repository} cannot be fetched, pushes to it wait, what runs keeps running: {self.reason}"


class RepositoryBack(EventBody, frozen=True, kw_only=True):
    """A repository can be fetched again."""

    repository: str

    def subject(self) -> str:
        return self.repository

    def sentence(self) -> str:
        return f"{self.repository} can be fetched again"


class DeploymentRefused(EventBody, frozen=True, kw_only=True):
    """A commit asked for something that it may not have, or that makes no sense."""

    repository: str
    branch: str
    commit: str
    reason: str
    hint: str = ""
    service: str = ""
    environment: str = ""

    def subject(self) -> str:
        return f"{self.service}/{self.environment}" if self.service else self.repository

    def sentence(self) -> str:
        return f"{self.repository} {self.commit[:12]} deploys nothing here: {self.reason} {self.hint}".strip()


class RolloutCreated(EventBody, frozen=True, kw_only=True):
    """One build is to go to one environment."""

    rollout: str
    service: str
    environment: str
    commit: str
    cause: str
    hosts: list[str]
    warnings: list[str] = []

    def subject(self) -> str:
        return f"{self.service}/{self.environment}"

    def sentence(self) -> str:
        hosts = ", ".join(self.hosts[:5]) + (f" and {len(self.hosts) - 5} more" if len(self.hosts) > 5 else "")
        return f"{self.service}: {self.commit[:12]} goes to {self.environment} ({self.cause}) on {hosts}"


class RolloutChanged(EventBody, frozen=True, kw_only=True):
    """A rollout entered another state."""

    rollout: str
    service: str
    environment: str
    commit: str
    state: str
    reason: str = ""

    def subject(self) -> str:
        return f"{self.service}/{self.environment}"

    def sentence(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return f"{self.service}/{self.environment} {self.commit[:12]} is {self.state}{why}"


class HostReported(EventBody, frozen=True, kw_only=True):
    """A host reached a final state with what it was told."""

    host: str
    service: str
    environment: str
    sequence: int
    state: str
    commit: str = ""
    reason: str = ""
    evidence: str = ""
    took: int = 0

    def subject(self) -> str:
        return f"{self.service}/{self.environment}"

    def sentence(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return f"{self.host}: {self.service}/{self.environment} {self.state} after {self.took} ms{why}"


class BuildEnded(EventBody, frozen=True, kw_only=True):
    """A build is there, or could not be made."""

    build: str
    service: str
    commit: str
    digest: str = ""
    size: int = 0
    reason: str = ""
    output: str = ""

    def subject(self) -> str:
        return self.service

    def sentence(self) -> str:
        if self.digest:
            return f"{self.service}: {self.commit[:12]} is built, {self.size} bytes, {self.digest[:19]}"
        return f"{self.service}: {self.commit[:12]} could not be built: {self.reason}"


class HostEnrolled(EventBody, frozen=True, kw_only=True):
    """A host has its certificate."""

    host: str
    labels: dict[str, str]
    fingerprint: str

    def subject(self) -> str:
        return self.host

    def sentence(self) -> str:
        labels = " ".join(f"{key}={value}" for key, value in self.labels.items())
        return f"{self.host} enrolled ({labels}), key {self.fingerprint}"


class Changed(EventBody, frozen=True, kw_only=True):
    """A person changed something: a grant, a token, a host, a repository, a hook."""

    what: str
    name: str
    change: str

    def subject(self) -> str:
        return f"{self.what} {self.name}"

    def sentence(self) -> str:
        return f"{self.what} {self.name}: {self.change}"
