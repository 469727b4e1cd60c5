"""The manifest: the statement of what may run.

A manifest names one commit of one repository for one service and environment, the digest of its build and of its
locked variables, and a sequence that only rises. It says *what*; *how* (commands, hooks, health) is read by the
host from ``waybill.yml`` at that very commit. Its bytes are canonical JSON, kept and hashed as first written.
"""

from __future__ import annotations

import msgspec

from waybill.core import canonical
from waybill.core.errors import InvalidInputError

Digest = str
"""``sha256:<64 hex digits>``."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one service in one environment.

    Attributes:
        v: Version of this format, 1.
        service: Name of the service, as in its file.
        environment: Name of the environment, as in the service file.
        repository: Name under which the server knows the repository; hosts grant by it.
        commit: Full object id of the commit, 40 or 64 lower-case hex digits.
        file: Path of the service file in the commit, for example ``waybill.yml``.
        build: Digest of the packed build; None where the commit's tree is the build.
        locked: Digest of the locked variables file in the commit; None where the environment has none.
        sequence: Rises with every manifest of the service and environment; a host never goes back.
        issued: When, RFC 3339 UTC.
    """

    service: str
    environment: str
    repository: str
    commit: str
    file: str
    sequence: int
    issued: str
    build: Digest | None = None
    locked: Digest | None = None
    v: int = 1

    @property
    def key(self) -> str:
        """``service/environment``: at most one manifest of a key is live on a host."""
        return f"{self.service}/{self.environment}"

    def same_content(self, other: Manifest) -> bool:
        """Whether both would run the very same thing, whatever their sequence and time."""
        return msgspec.structs.replace(self, sequence=0, issued="") == msgspec.structs.replace(
            other, sequence=0, issued=""
        )


def encode(manifest: Manifest) -> bytes:
    """The canonical bytes, to be stored, hashed, signed and sent as they are."""
    return canonical.encode(manifest)


def decode(data: bytes | str) -> Manifest:
    """The manifest in these bytes; unknown fields are ignored, so that versions can differ.

    Raises:
        InvalidInputError: Not JSON, a field is missing or of the wrong type, or the version is not 1.
    """
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise InvalidInputError(f"this is no manifest: {error}") from error
    if manifest.v != 1:
        raise InvalidInputError(
            f"the manifest has version {manifest.v}, this waybill knows version 1.", "Upgrade waybill here."
        )
    return manifest
