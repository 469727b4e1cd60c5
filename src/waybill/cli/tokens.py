"""``waybill token``: who may talk to the server."""

from __future__ import annotations

import cyclopts

from waybill.cli.output import Json, emit, table

app = cyclopts.App(
    name="waybill token", help="Create, list and revoke tokens.", help_format="plaintext", version_flags=[]
)


@app.command
def create(
    name: str, /, *, role: str, services: str = "*", environments: str = "*", days: int = 0, json: Json = False
) -> None:
    """Create a token; it is printed once.

    Args:
        name: Whose it is.
        role: viewer, deployer, approver or admin.
        services: Pattern of the services that it reaches.
        environments: Pattern of the environments that it reaches.
        days: Days until it expires; 0 for never.
        json: Print JSON.
    """
    from typing import get_args

    from waybill.cli.client import Client
    from waybill.core.errors import InvalidInputError
    from waybill.wire.api import Role, TokenMade, TokenWanted

    if role not in get_args(Role):
        raise InvalidInputError(f"there is no role {role!r}.", f"Roles are {', '.join(get_args(Role))}.")
    wanted = TokenWanted(name=name, role=role, services=services, environments=environments, days=days)  # type: ignore[arg-type]
    made = Client().call("POST", "/api/tokens", TokenMade, wanted)
    if json:
        emit(made)
        return
    print(made.text)


@app.command(name="list")
def list_tokens(*, json: Json = False) -> None:
    """List tokens, without their secrets.

    Args:
        json: Print JSON.
    """
    from waybill.cli.client import Client
    from waybill.wire.api import TokenInfo

    found = Client().call("GET", "/api/tokens", list[TokenInfo])
    if json:
        emit(found)
        return
    rows = (
        (one.id, one.name, one.role, one.services, one.environments, _state(one.revoked, one.expires)) for one in found
    )
    table(("ID", "NAME", "ROLE", "SERVICES", "ENVIRONMENTS", "STATE"), rows, "There are no tokens.")


@app.command
def revoke(identity: str, /, *, json: Json = False) -> None:
    """Refuse a token from now on.

    Args:
        identity: Its id.
        json: Print JSON.
    """
    from waybill.cli.client import Client

    Client().call("DELETE", f"/api/tokens/{identity}")
    if json:
        emit({"revoked": identity})
        return
    print(f"Token {identity} is refused from now on.")


def _state(revoked: bool, expires: str) -> str:  # noqa: FBT001 - two facts, one word
    from waybill.core.clock import stamp

    if revoked:
        return "revoked"
    if expires and expires < stamp():
        return "expired"
    return f"until {expires[:10]}" if expires else "valid"
