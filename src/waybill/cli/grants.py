"""``waybill grant``: what a service file may at most ask for."""

from __future__ import annotations

import cyclopts

from waybill.cli.output import Json, emit, labels, table, target

app = cyclopts.App(
    name="waybill grant",
    help="Say which repository, branches and hosts an environment may use.",
    help_format="plaintext",
    version_flags=[],
)


@app.default
def put(of: str, /, *, repository: str, branch: list[str], host: list[str] | None = None, json: Json = False) -> None:
    """Grant an environment to a repository: waybill grant hello/production --repository team/hello --branch main

    Args:
        of: service/environment.
        repository: The one repository whose waybill.yml may deploy there.
        branch: Branch or pattern that may; give it again for more.
        host: Label that every host must carry, as name=value; give it again for more.
        json: Print JSON.
    """  # noqa: D415 - ends in an example
    from waybill.cli.client import Client
    from waybill.wire.api import GrantInfo, GrantWanted

    service, environment = target(of)
    wanted = GrantWanted(repository=repository, branches=branch, hosts=labels(host or []))
    made = Client().call("PUT", f"/api/grants/{service}/{environment}", GrantInfo, wanted)
    if json:
        emit(made)
        return
    print(f"{repository} may deploy {of} from {', '.join(made.branches)} to hosts with {_words(made.hosts)}.")
    print(f"Next: push to {branch[0]}; what is there already: waybill deploy {of} {branch[0]}")


@app.command(name="list")
def list_grants(*, json: Json = False) -> None:
    """List grants.

    Args:
        json: Print JSON.
    """
    from waybill.cli.client import Client
    from waybill.wire.api import GrantInfo

    found = Client().call("GET", "/api/grants", list[GrantInfo])
    if json:
        emit(found)
        return
    rows = (
        (f"{one.service}/{one.environment}", one.repository, " ".join(one.branches), _words(one.hosts)) for one in found
    )
    table(("SERVICE", "REPOSITORY", "BRANCHES", "HOSTS"), rows, "Nothing is granted yet.")


@app.command
def revoke(of: str, /, *, json: Json = False) -> None:
    """Take a grant back; what runs keeps running.

    Args:
        of: service/environment.
        json: Print JSON.
    """
    from waybill.cli.client import Client

    service, environment = target(of)
    Client().call("DELETE", f"/api/grants/{service}/{environment}")
    if json:
        emit({"revoked": of})
        return
    print(f"{of} deploys nothing new; what runs keeps running.")


def _words(found: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(found.items())) or "any label"
