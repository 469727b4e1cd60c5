"""``waybill login``: remember a server and a token."""

from __future__ import annotations

import os
import sys

from waybill.cli.output import Json, emit
from waybill.core.errors import InvalidInputError


def login(server: str, /, *, ca: str = "", json: Json = False) -> None:
    """Remember a server, and a token for it.

    The token is asked for, or read from standard input or WAYBILL_TOKEN; never given as an argument, where others
    could read it.

    Args:
        server: Public address, for example https://waybill.example.com
        ca: PEM file of the authority to trust, where it is not one of the system's.
        json: Print JSON.
    """
    from waybill.cli import client
    from waybill.wire.api import HostInfo, TokenInfo

    if not server.startswith(("http://", "https://")):
        raise InvalidInputError(f"{server!r} is no address of a server.", "It begins with https:// or http://.")
    if ca and not os.path.isfile(ca):  # noqa: PTH113 - nothing else of pathlib is needed here
        raise InvalidInputError(f"there is no file {ca}.")
    text = os.environ.get("WAYBILL_TOKEN") or _ask()
    made = client.Login(server=server.rstrip("/"), token=text.strip(), ca=os.path.abspath(ca) if ca else "")  # noqa: PTH100
    token = client.Client(made).call("GET", "/api/token", TokenInfo)
    path = client.save(made)
    if json:
        emit({"server": made.server, "token": token, "file": str(path)})
        return
    of = "everything" if token.services == token.environments == "*" else f"{token.services} in {token.environments}"
    print(f"You are {token.name}, {token.role} of {of}.")
    print(f"Kept in {path}, for you alone.")
    if token.role == "admin" and not client.Client(made).call("GET", "/api/hosts", list[HostInfo]):
        print("Next: waybill enroll --label role=web, for a token with which a machine becomes a host.")
    if made.server.startswith("http://") and "//127." not in made.server and "//localhost" not in made.server:
        print("The connection is not encrypted: whoever is on the way can read the token.", file=sys.stderr)


def _ask() -> str:
    if sys.stdin.isatty():
        import getpass

        return getpass.getpass("Token: ")
    return sys.stdin.readline()
