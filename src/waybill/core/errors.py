"""One error root for every refusal.

A refusal is a sentence that a person can act on: ``reason`` says what was wrong and where, ``hint`` says what
to do next. The edges (command line, API, hook, agent report) turn it into an exit code, a problem document
(RFC 9457) or a report; nothing else formats errors.
"""

from __future__ import annotations


class WaybillError(Exception):
    """A refusal or failure that is told to a person.

    Attributes:
        reason: One sentence: what was wrong, and where. Never holds a secret.
        hint: One sentence: what to do next; empty when there is nothing to add.
        status: The HTTP status that an API edge answers with.
        exit_code: The exit status that the command line ends with.
    """

    status = 500
    exit_code = 1

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.reason} {self.hint}".strip()


class InvalidInputError(WaybillError):
    """What was given is malformed: a file, a field, an argument."""

    status = 400
    exit_code = 2


class UnauthenticatedError(WaybillError):
    """Nobody vouches for the sender: missing or wrong token, signature or certificate."""

    status = 401
    exit_code = 3


class ForbiddenError(WaybillError):
    """The sender is known and may not do this: no grant, wrong role, policy of a host."""

    status = 403
    exit_code = 4


class NotFoundError(WaybillError):
    """What was named does not exist, or is not visible to who asks."""

    status = 404
    exit_code = 5


class ConflictError(WaybillError):
    """The state has moved on: superseded, already done, held by somebody else."""

    status = 409
    exit_code = 6


class TooLargeError(WaybillError):
    """Over a stated size limit."""

    status = 413
    exit_code = 2


class UnavailableError(WaybillError):
    """Something outside did not answer; the same request may succeed later."""

    status = 503
    exit_code = 7
