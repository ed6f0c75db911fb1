"""The CA hierarchy as OpenSSL sees it, and what a home holds."""

from __future__ import annotations

import asyncio
import ssl
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.errors import CaUnsuitable, KeyFileExists, PassphraseWrong
from appliance.hierarchy import (
    ROLES,
    ROOT,
    SERVERS,
    addresses,
    certificate_file,
    check_ca,
    create_hierarchy,
    key_file,
    read_server,
)
from appliance.settings import CaSettings, DomainSettings, Settings, WebSettings
from appliance.web.app import build_app
from appliance.web.peer import Peer
from appliance.web.routes import ROUTES
from est.exchange import Call, Reply
from tests.appliance.authority import PASSPHRASE, SETTINGS, home
from tests.support import NOW

AT = str(int(NOW.timestamp()))


def load(name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificates(certificate_file(home(), name).read_bytes())[0]


def verify(name: str, *options: str) -> str:
    intermediates = certificate_file(home(), SERVERS[name]) if name in SERVERS else certificate_file(home(), ROOT)  # type: ignore[index]
    done = subprocess.run(
        [
            "openssl",
            "verify",
            "-x509_strict",
            "-attime",
            AT,
            "-CAfile",
            certificate_file(home(), ROOT),
            "-untrusted",
            intermediates,
            *options,
            certificate_file(home(), name),
        ],
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


@pytest.mark.interop
@pytest.mark.parametrize("name", [*ROLES, *SERVERS])
def test_openssl_verifies_every_chain_strictly(name: str) -> None:
    assert verify(name).endswith("OK\n")


@pytest.mark.interop
def test_openssl_accepts_servers_as_servers_under_their_names_only() -> None:
    assert verify("registrar", "-purpose", "sslserver", "-verify_hostname", "localhost").endswith("OK\n")
    assert verify("radius", "-purpose", "sslserver", "-verify_hostname", "radius.campus.example").endswith("OK\n")
    assert "error" in verify("radius", "-verify_hostname", "localhost")
    assert "error" in verify("radius", "-purpose", "sslclient")
    assert "error" in verify("https", "-purpose", "sslclient")


@pytest.mark.req("A-10")
def test_ca_certificates_have_their_constraints() -> None:
    check_ca(load(ROOT), None, NOW, path_length=1)
    for role in ROLES:
        check_ca(load(role), load(ROOT), NOW, path_length=0)
        with pytest.raises(CaUnsuitable):
            check_ca(load(role), load(ROOT), NOW, path_length=1)


def test_each_generation_has_its_own_subjects(tmp_path: Path) -> None:
    again = create_hierarchy(tmp_path, SETTINGS, PASSPHRASE, NOW, key_cost=1024)
    for name in (ROOT, *ROLES):
        assert again.certificates[name].subject != load(name).subject
    assert len({load(name).subject for name in (ROOT, *ROLES)}) == 4


@pytest.mark.req("E-36", "B-139", "B-140")
def test_the_registrar_is_server_client_and_registration_authority() -> None:
    purposes = set(load("registrar").extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    cmc_ra = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")
    assert purposes == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH, cmc_ra}
    for name in ("radius", "https"):
        purposes = set(load(name).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        assert purposes == {ExtendedKeyUsageOID.SERVER_AUTH}


@pytest.mark.req("E-36")
def test_server_certificates_carry_their_names_and_addresses() -> None:
    names = load("registrar").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    names = load("radius").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["radius.campus.example"]


def test_certificates_say_where_their_crl_and_issuer_are() -> None:
    point = load("registrar").extensions.get_extension_for_class(x509.CRLDistributionPoints).value[0]
    assert point.full_name is not None
    assert point.full_name[0].value == "http://pki.campus.example:8080/crl/devices.crl"


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        (Settings(), "http://localhost:8080/crl/agents.crl"),
        (Settings(web=WebSettings(names=("2001:db8::1",))), "http://[2001:db8::1]:8080/crl/agents.crl"),
        (Settings(web=WebSettings(pki_port=0)), ""),
        (Settings(ca=CaSettings(pki_base_url="http://x/y/"), web=WebSettings(pki_port=0)), "http://x/y/crl/agents.crl"),
    ],
)
def test_addresses_follow_the_settings(settings: Settings, url: str) -> None:
    assert addresses(settings, "agents")[0] == url


@pytest.mark.req("E-208")
@pytest.mark.parametrize("role", ROLES)
def test_addresses_in_certificates_are_answered_by_the_pki_port(role: str) -> None:
    async def nothing(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        return Reply(200)

    settings = Settings(web=WebSettings(names=("campus.example",)))
    pki = build_app("pki", {route.endpoint: nothing for route in ROUTES if route.listener == "pki"})
    for address in addresses(settings, role):
        url = urlsplit(address)
        assert (url.scheme, url.hostname, url.port) == ("http", "campus.example", settings.web.pki_port)
        # an OCSP client posts, or puts its request behind the address
        calls = [Call("GET", url.path)]
        if url.path == "/ocsp":
            calls = [Call("POST", url.path, "application/ocsp-request"), Call("GET", f"{url.path}/MFQ=")]
        for call in calls:
            assert asyncio.run(pki.handle(call, Peer("192.0.2.7"))).status == 200


def test_a_long_organization_and_trust_domain_still_make_names(tmp_path: Path) -> None:
    settings = Settings(domain=DomainSettings(organization="O" * 64, trust_domain=f"{'a' * 60}.example"))
    made = create_hierarchy(tmp_path, settings, PASSPHRASE, NOW, key_cost=1024)
    assert made.certificates["devices"].subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "O" * 64


def test_a_home_is_never_overwritten(tmp_path: Path) -> None:
    create_hierarchy(tmp_path, SETTINGS, PASSPHRASE, NOW, key_cost=1024)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    with pytest.raises(KeyFileExists):
        create_hierarchy(tmp_path, SETTINGS, PASSPHRASE, NOW, key_cost=1024)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before


def test_every_file_is_only_the_owners() -> None:
    for file in home().rglob("*"):
        assert stat.S_IMODE(file.stat().st_mode) == (0o700 if file.is_dir() else 0o600), file
    for name in (ROOT, *ROLES, *SERVERS, "sealing"):
        assert b"ENCRYPTED" in key_file(home(), name).read_bytes()


def test_a_server_identity_serves_pyopenssl_and_the_standard_library() -> None:
    found = read_server(home(), "https", PASSPHRASE)
    assert found.chain[-1] == load(ROOT)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(found.certificate_file, found.key_file, PASSPHRASE)
    with pytest.raises(PassphraseWrong):
        read_server(home(), "https", b"wrong")
