"""The process that decrypts: reads ``variables.Locked`` from standard input, writes ``variables.Opened``, ends."""

from __future__ import annotations

import sys

import msgspec

from waybill.agent.variables import Locked, Opened
from waybill.core.errors import WaybillError


def answer(given: Locked) -> Opened:
    """The variables, or a sentence that says why not; never anything secret in it."""
    from waybill.vault.open import environment_file, open_variables, unseal_ring

    try:
        ring = unseal_ring(given.sealed, given.identity)
        values = open_variables(given.locked, given.path, ring, given.digest)
        return Opened(values=values, file=environment_file(values))
    except WaybillError as error:
        return Opened(error=error.reason, hint=error.hint)


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(answer(msgspec.json.decode(sys.stdin.buffer.read(), type=Locked))))
