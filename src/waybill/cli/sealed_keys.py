"""The server's sealed keys, as the vault asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from waybill.cli.client import Client
from waybill.vault.ports import Host
from waybill.wire.api import HostInfo, Sealed


class ServerKeys:
    """Implements ``vault.ports.HostKeys`` over the API."""

    def __init__(self) -> None:
        self._client = Client()

    def host(self, name: str) -> Host:
        """The host of this name."""
        info = self._client.call("GET", f"/api/hosts/{quote(name, safe='')}", HostInfo)
        return Host(name=info.name, recipient=info.recipient, fingerprint=info.fingerprint)

    def put_sealed_key(self, service: str, environment: str, host: str, armor: str) -> None:
        """Keep the environment's key as sealed to this host."""
        self._client.call("PUT", _path(service, environment, host), body=Sealed(armor=armor))

    def sealed_hosts(self, service: str, environment: str) -> Sequence[Host]:
        """The hosts that have a sealed key of this environment."""
        names = self._client.call("GET", _path(service, environment), dict[str, str])
        return [self.host(name) for name in sorted(names)]

    def remove_sealed_key(self, service: str, environment: str, host: str) -> None:
        """Forget the sealed key."""
        self._client.call("DELETE", _path(service, environment, host))


def _path(*parts: str) -> str:
    return "/api/sealed/" + "/".join(quote(part, safe="") for part in parts)
