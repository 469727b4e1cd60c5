"""Sealed keys kept in memory: for tests and for trying things out without a server."""

from __future__ import annotations

from collections.abc import Sequence

from waybill.core.errors import NotFoundError
from waybill.vault import identity
from waybill.vault.ports import Host


class MemoryHostKeys:
    """A server's sealed keys as two dictionaries."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        self.sealed: dict[tuple[str, str, str], str] = {}

    def enroll(self, name: str, recipient: str) -> None:
        """A host appears, or comes back with another recipient."""
        self.hosts[name] = Host(name=name, recipient=recipient, fingerprint=identity.fingerprint(recipient))

    def host(self, name: str) -> Host:
        """See ``HostKeys``."""
        if name not in self.hosts:
            raise NotFoundError(f"there is no host {name!r}.", "waybill hosts lists them.")
        return self.hosts[name]

    def put_sealed_key(self, service: str, environment: str, host: str, armor: str) -> None:
        """See ``HostKeys``."""
        self.sealed[service, environment, self.host(host).name] = armor

    def sealed_hosts(self, service: str, environment: str) -> Sequence[Host]:
        """See ``HostKeys``."""
        return [self.hosts[host] for of, name, host in self.sealed if (of, name) == (service, environment)]

    def remove_sealed_key(self, service: str, environment: str, host: str) -> None:
        """See ``HostKeys``."""
        self.sealed.pop((service, environment, host), None)
