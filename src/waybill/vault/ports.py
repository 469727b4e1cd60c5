"""What the vault asks of the server: who a host is, and where the key that was sealed to it goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """A host as the server tells it: name, age recipient, and the fingerprint that the server claims for it."""

    name: str
    recipient: str
    fingerprint: str


class HostKeys(Protocol):
    """Sealed keys on the server, which carries ciphertext only."""

    def host(self, name: str) -> Host:
        """The host of this name.

        Raises:
            NotFoundError: None has this name.
        """
        ...

    def put_sealed_key(self, service: str, environment: str, host: str, armor: str) -> None:
        """Keep the environment's key as sealed to this host, in place of an earlier one."""
        ...

    def sealed_hosts(self, service: str, environment: str) -> Sequence[Host]:
        """The hosts that have a sealed key of this environment."""
        ...

    def remove_sealed_key(self, service: str, environment: str, host: str) -> None:
        """Forget the sealed key; nothing happens when there is none."""
        ...
