"""uvicorn's HTTP protocol with the one thing that it leaves out: who the client's certificate says it is.

TLS has verified the chain by then (``CERT_REQUIRED`` with our own root); this only reads name and serial and puts
them into the ASGI scope, where a client's header can never be.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

from waybill.web.patience import PatientProtocol

KEY = "waybill.client"
DEAD_AFTER = 25
"""Seconds of silence, not even from its kernel, after which a host counts as gone: it lost power, or its network."""


class ClientCertificateProtocol(PatientProtocol):
    """Puts the common name and the serial (lower-case hex) into ``scope["extensions"]``."""

    _client: tuple[str, str] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Read the certificate once for each connection."""
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        self._client = identity(tls.getpeercert()) if tls is not None else None
        peer = transport.get_extra_info("socket")
        if peer is not None and peer.family in (socket.AF_INET, socket.AF_INET6):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            asked = {"KEEPIDLE": DEAD_AFTER // 5 * 2, "KEEPINTVL": DEAD_AFTER // 5, "USER_TIMEOUT": DEAD_AFTER * 1000}
            for name, value in asked.items():
                if (option := getattr(socket, f"TCP_{name}", None)) is not None:
                    peer.setsockopt(socket.IPPROTO_TCP, option, value)
        super().connection_made(transport)

    def on_message_begin(self) -> None:
        """Hand it to each request of the connection."""
        super().on_message_begin()
        if self._client is not None:
            self.scope["extensions"] = {KEY: {"name": self._client[0], "serial": self._client[1]}}


def identity(certificate: Any) -> tuple[str, str] | None:
    """Common name and serial of what ``SSLObject.getpeercert`` returned; None when there is none."""
    if not certificate:
        return None
    names = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    serial = certificate.get("serialNumber", "").lower().lstrip("0")
    return (names[0], serial) if len(names) == 1 and serial else None
