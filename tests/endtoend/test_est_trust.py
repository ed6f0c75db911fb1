"""Whom a proxy gives its one-time secret: its process against servers with several kinds of certificates of one CA."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.clock import SystemClock
from appliance.initialise import initialise
from lab.certificates import CMC_RA, Identity, common_name, key_usage, make_leaf, write_file
from tests.campus import UNLIMITED, Campus, Ran, appliance, write_identity

pytestmark = pytest.mark.xdist_group("est-trust")  # one campus for the whole module
ELSEWHERE = "127.0.0.2"
"""Reaches this machine, and stands in no certificate."""


@pytest.fixture(scope="module")
def campus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campus]:
    found = Campus(tmp_path_factory.mktemp("trust"))
    initialise(
        found.home, SystemClock(), trust_domain="campus.example", organization="Example University",
        assignments=("registrar.announce=false",),
    )  # fmt: skip
    found.start(*UNLIMITED)
    yield found
    found.close()


@dataclass
class Server:
    """A TLS server that shows a certificate and keeps what it is told."""

    address: str
    handshakes: int = 0
    told: bytes = b""


@contextmanager
def server(context: ssl.SSLContext) -> Iterator[Server]:
    """Answers nothing, so that whatever is sent is what a client says without being asked."""
    with socket.create_server((ELSEWHERE, 0)) as listener:
        found = Server(f"{ELSEWHERE}:{listener.getsockname()[1]}")

        def serve() -> None:
            with suppress(OSError):
                while True:
                    plain, _ = listener.accept()
                    plain.settimeout(5)
                    with closing(plain), suppress(OSError), context.wrap_socket(plain, server_side=True) as opened:
                        found.handshakes += 1
                        while data := opened.recv(65_536):
                            found.told += data

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


@contextmanager
def relay(address: str) -> Iterator[str]:
    """The same server at an address that its certificate does not name."""
    host, _, port = address.rpartition(":")

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    with socket.create_server((ELSEWHERE, 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    near, _ = listener.accept()
                    far = socket.create_connection((host, int(port)))
                    for pair in ((near, far), (far, near)):
                        threading.Thread(target=pump, args=pair, daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"{ELSEWHERE}:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def settings(campus: Campus, folder: Path, address: str, name: str) -> list[str]:
    """Of a proxy that knows the root and has a secret."""
    folder.mkdir(exist_ok=True)
    anchor, secret = folder / "root.pem", folder / "secret"
    anchor.write_bytes(campus.certificates_of("root")[0].public_bytes(Encoding.PEM))
    write_file(secret, str(campus.ask("est.secret", name=name)["credentials"]).encode())
    return [
        "--set=proxy.method=est", f"--set=proxy.registrar_url=https://{address}", f"--set=proxy.est_anchor={anchor}",
        f"--set=proxy.est_secret_file={secret}", "--set=proxy.give_up_seconds=3", "--set=proxy.allow_root_agents=true",
    ]  # fmt: skip


def shown(campus: Campus, *, named: x509.GeneralName, ra: bool) -> ssl.SSLContext:
    """A server's context with a certificate of the CA that issued the registrar's own."""
    ca = Identity(campus.key_of("devices"), campus.certificates_of("devices")[0])
    purposes = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH, *([CMC_RA] if ra else [])])
    extensions = [(x509.SubjectAlternativeName([named]), False), (purposes, False), (key_usage(), True)]
    leaf = make_leaf(ca, common_name("other server"), now=datetime.now(UTC), days=7, extensions=extensions)
    files = write_identity(campus.folder / "servers", (leaf.certificate, ca.certificate), leaf.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    return context


def run_proxy(folder: Path, chosen: list[str]) -> Ran:
    return appliance("proxy", "run", "--state", folder / "state", "-o", "json", *chosen)


@pytest.mark.req("E-33", "E-35")
@pytest.mark.parametrize(
    ("named", "ra", "is_trusted"),
    [
        (x509.DNSName("appliance.campus.example"), False, False),
        (x509.DNSName("appliance.campus.example"), True, True),
        (x509.IPAddress(ipaddress.ip_address(ELSEWHERE)), False, True),
    ],
    ids=["another name", "another name and cmcRA", "its name"],
)
def test_a_proxy_says_nothing_to_a_server_of_the_right_ca_without_name_or_ra_mark(
    campus: Campus, tmp_path: Path, named: x509.GeneralName, ra: bool, is_trusted: bool
) -> None:
    name = tmp_path.name[-40:]
    with server(shown(campus, named=named, ra=ra)) as found:
        ended = run_proxy(tmp_path, settings(campus, tmp_path, found.address, name))
    assert ended.status != 0 and found.handshakes >= 1
    assert ("server-not-authorized" in ended.err + ended.out) is not is_trusted
    if is_trusted:
        assert found.told.startswith(b"GET /.well-known/est/cacerts ")
    else:
        assert found.told == b""
    assert b"authorization" not in found.told.lower()
    assert name not in {row["name"] for row in campus.ask("proxies.list")}


@pytest.mark.req("E-33", "E-36")
def test_the_appliance_itself_is_trusted_at_an_address_that_its_certificate_does_not_name(
    campus: Campus, tmp_path: Path
) -> None:
    with relay(campus.listeners["device"]) as address:
        chosen = settings(campus, tmp_path, address, "behind a relay")
        command = [sys.executable, "-m", "appliance", "proxy", "run", "--state", tmp_path / "state", "-o", "json"]
        proxy = campus.cast.start("relayed", [*command, *chosen])
        proxy.wait_for("ready", 120)
        proxy.stop()
    assert "behind a relay" in {row["name"] for row in campus.ask("proxies.list")}
