"""strongSwan, Bouncy Castle and curl with openssl against a running appliance: everything, short and long, both TLS."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from tests.interop.est_clients import (
    CLIENTS,
    HERE,
    JARS,
    LABEL,
    TLS_JAR,
    BouncyCastle,
    Curl,
    Foreign,
    Site,
    need,
    openssl_copy,
    openssl_key,
    openssl_renewal,
    run,
)
from tests.reference import DOCS

pytestmark = [pytest.mark.interop, pytest.mark.lab, pytest.mark.xdist_group("est-clients")]
NUMBERS = count(1)
PAGE = DOCS / "howto" / "enrol-with-other-clients.md"
PLACEHOLDER = "appliance.campus.example:8443"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    found = Site.start(tmp_path_factory.mktemp("est"))
    yield found
    found.campus.close()


def certificate_in(file: Path) -> x509.Certificate:
    (found,) = x509.load_pem_x509_certificates(file.read_bytes())
    return found


def names_of(certificate: x509.Certificate) -> tuple[str, list[str]]:
    (common_name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return str(common_name.value), san.get_values_for_type(x509.UniformResourceIdentifier)


def is_long(csr: Path) -> bool:
    return len(base64.b64encode(csr.read_bytes())) > 1024


def first_and_second(client: Foreign, site: Site, tls: str, size: str, folder: Path) -> None:
    """A certificate for a secret, then one for that certificate: another key, or the same and all its extensions."""
    key, csr, got = folder / "key.pem", folder / "csr.der", folder / "certificate.pem"
    client.request(size, key, csr)
    assert is_long(csr) is (size == "large")
    assert client.enroll(tls, csr, site.credentials(f"proxy-{next(NUMBERS)}"), got) == tls
    first = certificate_in(got)
    (uri,) = names_of(first)[1]
    assert re.fullmatch(r"spiffe://campus\.example/proxy/[0-9a-f-]{36}", uri)
    assert first.public_key() == x509.load_der_x509_csr(csr.read_bytes()).public_key()

    new_key, new_csr, new = folder / "new-key.pem", folder / "new-csr.der", folder / "new-certificate.pem"
    if size == "large":
        openssl_copy(got, key, new_csr)
    else:
        openssl_key(size, new_key)
        openssl_renewal(got, new_key, new_csr)
    assert is_long(new_csr) is (size == "large")
    assert client.reenroll(tls, new_csr, got, key, new) == tls
    second = certificate_in(new)
    assert second.public_key() == x509.load_der_x509_csr(new_csr.read_bytes()).public_key()
    assert (second.public_key() == first.public_key()) is (size == "large")
    assert names_of(second) == names_of(first) and second.serial_number != first.serial_number
    for one in (first, second):
        one.verify_directly_issued_by(x509.load_pem_x509_certificate(site.issuer.read_bytes()))


@pytest.mark.req(
    "E-5", "E-17", "E-20", "E-25", "E-26", "E-36", "E-40", "E-46", "E-51", "E-58", "E-90", "E-93", "E-99", "E-110",
    "E-114", "E-121", "E-123", "E-124", "E-208",
)  # fmt: skip
@pytest.mark.parametrize("kind", CLIENTS)
def test_a_client_gets_the_cas_and_enrols_and_renews_with_short_and_long_bodies_on_both_tls_versions(
    site: Site, kind: type[Foreign], tmp_path: Path
) -> None:
    with closing(kind(site, tmp_path)) as client:
        for tls in ("1.2", "1.3"):
            version, got = client.cacerts(tls, tmp_path)
            assert (version, set(got)) == (tls, site.cas)
            for size in ("small", "large"):
                folder = tmp_path / f"{size}-{tls}"
                folder.mkdir()
                first_and_second(client, site, tls, size, folder)


@pytest.mark.req("E-7", "E-9")
@pytest.mark.parametrize("kind", [BouncyCastle, Curl])
def test_a_client_that_knows_labels_gets_the_certificates_of_its_label(
    site: Site, kind: type[Foreign], tmp_path: Path
) -> None:
    key, csr, got = tmp_path / "key.pem", tmp_path / "csr.der", tmp_path / "certificate.pem"
    with closing(kind(site, tmp_path)) as client:
        client.label = LABEL
        client.request("small", key, csr)
        assert set(client.cacerts("1.3", tmp_path)[1]) == site.cas
        with pytest.raises(AssertionError, match="401"):
            client.enroll("1.3", csr, site.credentials(f"without label {next(NUMBERS)}"), got)
        client.enroll("1.3", csr, site.credentials(f"labelled {next(NUMBERS)}", LABEL), got)
        first = certificate_in(got)
        assert first.not_valid_after_utc - datetime.now(UTC) < timedelta(days=7)
        new_csr, new = tmp_path / "new-csr.der", tmp_path / "new.pem"
        openssl_renewal(got, key, new_csr)
        client.reenroll("1.3", new_csr, got, key, new)
        assert names_of(certificate_in(new)) == names_of(first)
        client.label = ""
        with pytest.raises(AssertionError, match="403"):
            client.reenroll("1.3", new_csr, got, key, new)


@pytest.mark.req("E-46", "E-138")
@pytest.mark.parametrize(
    ("kind", "told"),
    list(zip(CLIENTS, ("HTTP 401", "401 enrollment-secret-invalid: the name or", "error: 401"), strict=True)),
)
def test_a_client_with_a_wrong_secret_is_told_so_as_far_as_it_can_listen(
    site: Site, kind: type[Foreign], told: str, tmp_path: Path
) -> None:
    key, csr, got = tmp_path / "key.pem", tmp_path / "csr.der", tmp_path / "certificate.pem"
    with closing(kind(site, tmp_path)) as client:
        client.request("small", key, csr)
        wrong = site.credentials("refused")[:-1]
        with pytest.raises(AssertionError, match=told):
            client.enroll("1.2", csr, wrong, got)
    assert not got.exists()


def blocks_of(title: str) -> list[str]:
    """The shell lines of one section of the manual's page."""
    (section,) = re.findall(rf"^## {title}$(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("title", "kind"), list(zip(("strongSwan", "Bouncy Castle", "curl and openssl"), CLIENTS, strict=True))
)
def test_the_command_lines_of_the_manual_do_what_they_say(
    site: Site, title: str, kind: type[Foreign], tmp_path: Path
) -> None:
    kind.require()
    (tmp_path / "secret").write_text(site.credentials(f"manual, {title}") + "\n")
    (tmp_path / "root.pem").write_bytes(site.root.read_bytes())
    shutil.copy(HERE / "java" / "EstClient.java", tmp_path)
    (umask,), (again,), (first, renewal) = (
        blocks_of("Before")[1:],
        blocks_of("The request for a renewal"),
        blocks_of(title),
    )
    script = f"set -euo pipefail; cd {tmp_path}\n" + umask + first + again + renewal
    run("bash", "-c", script.replace(PLACEHOLDER, site.address))
    old, new = (certificate_in(tmp_path / f"{name}certificate.pem") for name in ("", "new-"))
    assert names_of(old) == names_of(new) and old.public_key() != new.public_key()
    cas = [file for file in (tmp_path / "ca.pem", tmp_path / "ca-1.pem") if file.exists()]
    assert {one for file in cas for one in x509.load_pem_x509_certificates(file.read_bytes())} == site.cas


@pytest.mark.req("E-70", "E-71", "E-72", "E-73", "E-76")
def test_bouncy_castle_over_its_own_tls_binds_its_request_to_the_connection(site: Site, tmp_path: Path) -> None:
    BouncyCastle.require()
    need("libbctls-java", TLS_JAR)
    secret, got = tmp_path / "secret", tmp_path / "certificate.pem"
    secret.write_text(site.credentials("bound"))
    path = ":".join(map(str, (*JARS, TLS_JAR, tmp_path)))
    run("javac", "-d", tmp_path, "-cp", path, HERE / "java" / "EstBoundClient.java")
    run("java", "-XX:TieredStopAtLevel=1", "-cp", path, "EstBoundClient", site.address, site.root, secret, got)
    (identifier,) = names_of(certificate_in(got))[1]
    issued = site.campus.ask("audit.list", event="ldevid-issued")
    assert [one["fields"]["linked"] for one in issued if one["fields"]["proxy"] == identifier] == [True]
