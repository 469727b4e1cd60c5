"""What a host needs of locked configuration: from the locked bytes to variables and the file that carries them.

The agent imports this module and nothing else of the vault.
"""

from __future__ import annotations

import contextlib
import hmac

from waybill.core import canonical
from waybill.core.errors import ForbiddenError
from waybill.vault import identity as age
from waybill.vault import sops
from waybill.vault.variables import check, environment_file, parse_environment_file

__all__ = ["environment_file", "open_variables", "parse_environment_file", "unseal_ring"]


def open_variables(locked: bytes, path: str, identity: str, expected_digest: str) -> dict[str, str]:
    """The variables in a locked file.

    Args:
        locked: The file as it is in the commit.
        path: Its name in the commit; tells the syntax and stands in sentences.
        identity: Text of the environment's identity file: one age secret key a line, comments allowed.
        expected_digest: ``sha256:<hex>`` that the manifest pins. Anyone who knows a recipient can make a valid SOPS
            file, so the file alone proves nothing.

    Raises:
        ForbiddenError: The digest differs, no identity fits, or the file was changed.
        InvalidInputError: It is malformed, or holds something that is no variable.
        TooLargeError: It has more than 512 KiB.
    """
    if not hmac.compare_digest(canonical.digest(locked).encode(), expected_digest.encode()):
        raise ForbiddenError(f"{path} is not the file that the manifest names: its digest differs.", "Deploy again.")
    document = sops.read(locked, path)
    opened = sops.unlock(document, age.parse(identity, f"the identity for {path}"))
    return check(opened.leaves, path, document.nested)


def unseal_ring(armor: str, host_identity: str) -> str:
    """The environment's identity file, out of what ``waybill keys grant`` sealed to this host.

    Args:
        armor: What was sealed.
        host_identity: The host's own identity; below it those that it had before it was enrolled again.

    Raises:
        ForbiddenError: It is damaged, or sealed to another host.
    """
    present, *earlier = age.parse(host_identity, "the host's identity")
    for host in earlier:
        with contextlib.suppress(ForbiddenError):
            return age.unseal(armor, host, "the environment's key").decode()
    return age.unseal(armor, present, "the environment's key").decode()
