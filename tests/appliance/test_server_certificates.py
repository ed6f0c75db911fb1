"""The appliance renews its own certificates: in time, in one step on the disk, and without dropping anybody."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import socket
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from appliance.clock import SystemClock
from appliance.compose import create_appliance
from appliance.console.client import call
from appliance.errors import NotFound
from appliance.hierarchy import SERVERS, read_server
from appliance.home import admin_socket
from appliance.initialise import initialise
from appliance.server_certificates import ServerCertificates
from appliance.settings import load_settings
from appliance.store import Store, certificates
from est.keys import spki
from tests.appliance import authority
from tests.support import NOW, FixedClock

QUIET = (
    "web.device_port=0", "web.console_port=0", "web.decision_port=0", "web.pki_port=0", "radius.port=0",
    "registrar.announce=false",
)  # fmt: skip


def servers_of(home: Path, ca: Any, clock: FixedClock) -> ServerCertificates:
    read = {name: read_server(home, name, authority.PASSPHRASE) for name in SERVERS}
    return ServerCertificates(read, ca=ca, settings=authority.SETTINGS, clock=clock)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    shutil.copytree(authority.home(), tmp_path / "home")
    return tmp_path / "home"


def audited(store: Store, event: str) -> list[dict[str, Any]]:
    rows = store.read_sync(lambda tx: tx.all(__import__("sqlalchemy").text("SELECT body FROM audit ORDER BY seq")))
    return [body for row in rows if (body := json.loads(row.body))["event"] == event]


def test_certificates_are_renewed_at_two_thirds_of_their_life(home: Path, tmp_path: Path) -> None:
    clock = FixedClock()
    days = authority.SETTINGS.ca.server_days
    with authority.authority(tmp_path, clock) as (ca, store):
        servers = servers_of(home, ca, clock)
        before = dict(servers.items())
        clock.advance(timedelta(days=days * 0.66).total_seconds())
        assert asyncio.run(servers.renew_due()) == []
        clock.advance(timedelta(days=days * 0.01).total_seconds())
        assert [one["server"] for one in asyncio.run(servers.renew_due())] == ["registrar", "radius", "https"]
        assert asyncio.run(servers.renew_due()) == []
        for name, old in before.items():
            new = servers[name]
            assert new.certificate.not_valid_after_utc == clock.now() + timedelta(days=days)
            assert spki(new.certificate) == spki(old.certificate), "the key stays"
            assert new.certificate.subject == old.certificate.subject
            on_disk = read_server(home, name, authority.PASSPHRASE)
            assert on_disk.certificate == new.certificate and on_disk.chain == new.chain
            row = store.read_sync(
                lambda tx, new=new, name=name: certificates.by_serial(  # type: ignore[misc]
                    tx, ca.issuing(SERVERS[name]).key_identifier, new.certificate.serial_number
                )
            )
            assert row is not None and row.state == "issued" and row.profile == name
        issued = audited(store, "server-certificate-issued")
        assert [one["fields"]["name"] for one in issued] == ["registrar", "radius", "https"]
        assert issued[0]["actor"]["kind"] == "appliance"


def test_a_certificate_that_ends_with_its_ca_is_not_made_anew_for_ever(home: Path, tmp_path: Path) -> None:
    clock = FixedClock()
    with authority.authority(tmp_path, clock) as (ca, _):
        servers = servers_of(home, ca, clock)
        end = ca.issuing("devices").certificate.not_valid_after_utc
        clock.advance((end - NOW - timedelta(days=10)).total_seconds())
        assert len(asyncio.run(servers.renew_due())) == 3
        assert servers["registrar"].certificate.not_valid_after_utc == end
        clock.advance(timedelta(days=8).total_seconds())
        assert asyncio.run(servers.renew_due()) == []


def test_one_server_can_be_renewed_and_an_unknown_one_is_refused(home: Path, tmp_path: Path) -> None:
    with authority.authority(tmp_path) as (ca, _):
        servers = servers_of(home, ca, FixedClock())
        old = servers["https"].certificate
        made = asyncio.run(servers.renew(["radius"], actor=authority.ACTOR))
        assert [one["server"] for one in made] == ["radius"] and servers["https"].certificate == old
        with pytest.raises(NotFound, match="no server ldap"):
            asyncio.run(servers.renew(["radius", "ldap"], actor=authority.ACTOR))


def test_the_log_warns_once_per_step(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = FixedClock()
    with authority.authority(tmp_path, clock) as (ca, _):
        servers = servers_of(home, ca, clock)
        end = ca.issuing("agents").certificate.not_valid_after_utc

        def told(left: timedelta) -> list[str]:
            clock.advance((end - left - clock.now()).total_seconds())
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                servers._warn()
                servers._warn()
            return [one.getMessage() for one in caplog.records if "name=agents" in one.getMessage()]

        assert told(timedelta(days=31)) == []
        for left, step in ((29, 30), (13, 14), (6.5, 7), (0.5, 1)):
            (line,) = told(timedelta(days=left))
            assert "event=certificate-ends" in line and f"days={step} " in line


def shown(address: str) -> tuple[int, ssl.SSLSocket]:
    """Serial number of the certificate on a port, and the connection, still open."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    link = context.wrap_socket(socket.create_connection((host, int(port)), timeout=20))
    return x509.load_der_x509_certificate(link.getpeercert(True) or b"").serial_number, link


def answer(link: ssl.SSLSocket, path: str) -> bytes:
    link.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return link.recv(100)


@pytest.mark.slow
def test_a_running_appliance_shows_the_new_certificates_and_keeps_its_connections(tmp_path: Path) -> None:
    home = tmp_path / "home"
    initialise(home, SystemClock(), trust_domain="campus.example", organization="Example")
    (home / "run").mkdir(mode=0o700, exist_ok=True)
    settings = load_settings(home, QUIET).settings
    passphrase = (home / "passphrase").read_bytes().strip()

    def story(made: Any) -> None:
        ports = {name: made.listeners[name] for name in ("device", "console", "decision")}
        before = {name: shown(address) for name, address in ports.items()}
        server = made._radius._server
        front = server._front
        done = call(admin_socket(home), "ca.renew_servers", {"names": []})
        serials = {one["server"]: int(one["serial"], 16) for one in done}
        after = {name: shown(address) for name, address in ports.items()}
        assert after["device"][0] == serials["registrar"] != before["device"][0]
        assert after["console"][0] == after["decision"][0] == serials["https"] != before["console"][0]
        assert made._brski.own_chain[0].serial_number == serials["registrar"]
        assert made._radius._server is server and server._front is not front
        assert made._radius._parts.identity.certificate.serial_number == serials["radius"]
        for links in (before, after):
            assert answer(links["device"][1], "/.well-known/est/cacerts").startswith(b"HTTP/1.1 200")
            assert answer(links["console"][1], "/healthz").startswith(b"HTTP/1.1 200")
            for _, link in links.values():
                link.close()

    async def life() -> None:
        made = create_appliance(settings, passphrase=passphrase)
        try:
            await made.prepare()
            await made.start()
            await asyncio.to_thread(story, made)
        finally:
            await made.stop()

    asyncio.run(life())
