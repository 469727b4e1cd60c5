"""Faults around a server, each with a sentence and the exact fix."""

import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import threading

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from waybill.cli.doctor import reach
from waybill.deploy.model import Host
from waybill.web import diagnosis

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)


def certificate(*names, begin=NOW - dt.timedelta(days=10), end=NOW + dt.timedelta(days=80), own=False):
    """(certificate, key) of these names, by another authority unless ``own``."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0] if names else "x")])
    issuer = subject if own else x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Authority")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
    if names:
        alternatives = []
        for name in names:
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                alternatives.append(x509.DNSName(name))
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(key, hashes.SHA256()), key


CERTIFICATES = [
    (certificate("w.example.org")[0], "w.example.org", []),
    (certificate("*.example.org")[0], "w.example.org", []),
    (certificate("*.example.org")[0], "a.w.example.org", ["it does not name a.w.example.org."]),
    (certificate("*.org")[0], "example.org", []),
    (certificate("10.0.0.5")[0], "10.0.0.5", []),
    (certificate("10.0.0.5")[0], "10.0.0.6", ["it does not name 10.0.0.6."]),
    (certificate()[0], "x", ["it does not name x."]),
    (certificate("w", end=NOW - dt.timedelta(days=1))[0], "w", ["it expired on 2026-05-31."]),
    (certificate("w", end=NOW + dt.timedelta(days=3))[0], "w", ["it expires on 2026-06-04."]),
    (certificate("w", begin=NOW + dt.timedelta(hours=1))[0], "w", ["it is valid from 2026-06-01 01:00 UTC on."]),
    (certificate("w", own=True)[0], "w", ["it is self-signed: forges refuse to deliver hooks to it."]),
]


@pytest.mark.parametrize(("made", "name", "sentences"), CERTIFICATES)
def test_certificates(made, name, sentences):
    found = diagnosis.certificate_findings(made, name, NOW)
    assert [one.sentence for one in found if one.level != "fine"] == sentences
    assert all(one.fix for one in found if one.level != "fine")


@pytest.mark.parametrize(
    ("url", "checks"),
    [
        ("https://waybill.example.org", []),
        ("https://10.1.2.3:8470", ["hooks to a local address"]),
        ("http://10.1.2.3", ["hooks to a local address", "encryption"]),
        ("http://127.0.0.1:8470", ["public address", "hooks to a local address"]),
        ("https://waybill.internal", ["hooks to a local address"]),
        ("http://[::1]:1", ["public address", "hooks to a local address"]),
    ],
)
def test_whether_forges_reach_the_address(url, checks):
    found = [one for one in diagnosis.public_address(url, has_hooks=True) if one.level != "fine"]
    assert [one.check for one in found] == checks
    for one in found:
        if one.check == "hooks to a local address":
            assert "Allow requests to the local network from webhooks and integrations" in one.fix
            assert "ALLOWED_HOST_LIST" in one.fix


@pytest.mark.parametrize(("free", "level"), [(10 * 1024**3, "fine"), (1024**3, "warning"), (100 * 1024**2, "fault")])
def test_disk(free, level):
    assert diagnosis.disk("d", free, "/data").level == level


def host(connected=True, **facts):
    told = {"version": "1", "arch": "x", "system": "s", "at": "2026-06-01T12:00:00.000Z", **facts}
    return Host(
        name="web-1",
        labels={},
        recipient="",
        fingerprint="",
        connected=connected,
        facts=msgspec.json.encode(told).decode() if facts else "",
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (host(received="2026-06-01T12:00:30.000Z"), "connected, clock and disk in order."),
        (host(received="2026-06-01T13:00:00.000Z"), "its clock is 3600 s behind the server's."),
        (host(received="2026-06-01T11:00:00.000Z"), "its clock is 3600 s ahead of the server's."),
        (host(disk_free=100 * 1024**2), "only 0.1 GiB free."),
        (host(connected=False), "it is not connected and never was."),
        (host(received="nonsense"), "connected, clock and disk in order."),
    ],
)
def test_hosts(given, sentence):
    assert diagnosis.host_findings(given)[0].sentence == sentence


def test_hooks_that_never_delivered_and_refused_ones():
    known = [
        {"id": "1", "forge": "gitlab", "repository": "team/hello"},
        {"id": "2", "forge": "gitea", "repository": "b"},
    ]
    found = diagnosis.hooks(known, {"2": "2026"}, {"wrong-signature": 3}, "https://w")
    assert [one.sentence for one in found] == [
        "gitlab has delivered nothing yet, or not for 30 days.",
        "3 deliveries were refused since the server began: wrong signature.",
    ]
    assert "https://w/hooks/1" in found[0].fix


def test_a_refused_connection_and_an_unknown_name_are_told_apart():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    [found] = reach("server", f"http://127.0.0.1:{port}")
    assert found.sentence == f"nothing listens on 127.0.0.1 port {port}."
    assert "systemctl start waybill" in found.fix
    [found] = reach("server", "http://no-such-host.invalid")
    assert found.sentence == "the name no-such-host.invalid has no address here."


@pytest.fixture
def tls(tmp_path):
    """Serve TLS handshakes with a certificate; yields a function from certificate and key to the port."""
    listeners = []

    def serve(made, key):
        file = tmp_path / "pair.pem"
        file.write_bytes(
            made.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def accept():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                context.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        return listener.getsockname()[1], file

    yield serve
    for listener in listeners:
        listener.close()


def test_a_certificate_that_is_not_accepted_is_told_with_its_fix(tls):
    today = dt.datetime.now(dt.UTC)
    span = {"begin": today - dt.timedelta(days=1), "end": today + dt.timedelta(days=1)}
    port, file = tls(*certificate("127.0.0.1", own=True, **span))
    [found] = reach("server", f"https://127.0.0.1:{port}")
    assert found.level == "fault"
    assert "self-signed" in found.sentence
    assert "--ca FILE" in found.fix
    port, file = tls(*certificate("10.9.8.7", own=True, **span))
    [found] = reach("server", f"https://127.0.0.1:{port}", ca=str(file))
    assert "subject alternative name" in found.fix
    old = {"begin": today - dt.timedelta(days=9), "end": today - dt.timedelta(days=1)}
    port, file = tls(*certificate("127.0.0.1", own=True, **old))
    [found] = reach("server", f"https://127.0.0.1:{port}", ca=str(file))
    assert found.fix == "Renew the server's certificate and restart the server."
    port, file = tls(*certificate("127.0.0.1", own=True, **span))
    [found] = reach("server", f"https://127.0.0.1:{port}", ca=str(file))
    assert found.level == "fine"
