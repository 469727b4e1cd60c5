"""``waybill serve``: run the server."""

from __future__ import annotations

from pathlib import Path

from waybill.cli.output import Json


def serve(
    *,
    data: Path = Path("/var/lib/waybill"),
    listen: str | None = None,
    port: int | None = None,
    agents_listen: str | None = None,
    agents_port: int | None = None,
    public_url: str | None = None,
    agents_url: str | None = None,
    database: str | None = None,
    tls_certificate: str | None = None,
    tls_key: str | None = None,
    json: Json = False,
) -> int:
    """Run the server until it is told to stop.

    What is not given here comes from WAYBILL_* variables, then from server.toml in the data folder. The first start
    prints a token for an admin, once.

    Args:
        data: Folder of everything that the server keeps.
        listen: Address of API, pages and webhooks.
        port: Port of API, pages and webhooks; 0 takes a free one.
        agents_listen: Address for agents.
        agents_port: Port for agents; 0 takes a free one.
        public_url: How browsers, forges and the command line reach the port.
        agents_url: How agents reach theirs.
        database: sqlite, or a postgresql:// address.
        tls_certificate: PEM file; without one the port speaks plain HTTP, for loopback or behind a proxy.
        tls_key: PEM file.
        json: Log in JSON lines.
    """
    try:
        from waybill.server.main import serve as run
    except ImportError as error:
        from waybill.core.errors import UnavailableError

        raise UnavailableError(
            f"the server's packages are not installed here: {error.name} is missing.",
            "Install waybill[server].",
        ) from error
    from waybill.infra.settings import load

    given: dict[str, object] = {
        "listen": listen,
        "port": port,
        "agents_listen": agents_listen,
        "agents_port": agents_port,
        "public_url": public_url,
        "agents_url": agents_url,
        "database": database,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "log_json": True if json else None,
    }
    return run(load(data, given))
