"""Keys made by a running appliance, taken by curl with openssl and by Bouncy Castle: in clear and sealed both ways."""

from __future__ import annotations

import email
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from est import cms, csr, der, profiles, serverkeygen
from tests.interop.est_clients import BouncyCastle, Curl, Site, run

pytestmark = [pytest.mark.interop, pytest.mark.lab, pytest.mark.xdist_group("est-clients")]
SHARED = os.urandom(32)
OIDS = (
    "DecryptKeyIdentifier = 1.2.840.113549.1.9.16.2.37\nAsymmetricDecryptKeyIdentifier = 1.2.840.113549.1.9.16.2.54\n"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("est")
    file = folder / "shared-keys"
    file.write_text(f"0102 {SHARED.hex()}\n")
    file.chmod(0o600)
    found = Site.start(folder, "est.serverkeygen=plain", f"est.shared_keys_file={file}")
    yield found
    found.campus.close()


def placeholder(folder: Path, attributes: Mapping[str, bytes] | None = None, **names: Any) -> Path:
    """A request with a key that means nothing; openssl's command line cannot write the attributes, so it is ours."""
    file = folder / "csr.der"
    asked = {kind: (der.tlv(der.OCTET_STRING, value),) for kind, value in (attributes or {}).items()}
    subject = {"subject": profiles.name("new key"), **names}
    file.write_bytes(csr.build(key=ec.generate_private_key(ec.SECP256R1()), attributes=asked, **subject))
    return file


def parts(answer: bytes) -> tuple[Message, Message]:
    """Head and body of curl -i, as a mail reader takes them apart."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, _, fields = head.partition(b"\r\n")
    assert b" 200 " in status, answer
    first, second = email.message_from_bytes(fields + b"\r\n\r\n" + body).get_payload()
    return first, second


def keygen(site: Site, asked: Path, *more: str | Path) -> tuple[Message, Message]:
    body = run("openssl", "base64", "-A", "-in", asked).stdout
    done = run(
        "curl", "-sSi", "--cacert", site.root, *more, "-H", "Content-Type: application/pkcs10", "--data-binary", "@-",
        f"https://{site.address}/.well-known/est/serverkeygen", data=body,
    )  # fmt: skip
    return parts(done.stdout)


def secret(site: Site, folder: Path, name: str) -> tuple[str, Path]:
    config = folder / "curl-config"
    config.write_text(f'user = "{site.credentials(name)}"\n')
    return "-K", config


def key_in(sealed: bytes) -> ec.EllipticCurvePrivateKey:
    """The key inside SignedData, which openssl has taken out of its envelope."""
    content = der.sequence(der.oid(serverkeygen.ID_SIGNED_DATA), der.tlv(0xA0, sealed))
    package = cms.unseal(content, content_types=(serverkeygen.ID_CT_KEY_PACKAGE,)).content
    key = load_der_private_key(package[slice(*der.only(package, 0, len(package), der.SEQUENCE))], None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def check(key: object, part: Message) -> x509.Certificate:
    (certificate,) = cms.read_certs_only(part.get_payload(decode=True))
    as_der = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert key.public_key().public_bytes(*as_der) == certificate.public_key().public_bytes(*as_der)  # type: ignore[attr-defined]
    return certificate


@pytest.mark.req("E-173", "E-174", "E-176")
def test_curl_takes_a_key_in_clear_and_openssl_reads_it(site: Site, tmp_path: Path) -> None:
    Curl.require()
    first, second = keygen(site, placeholder(tmp_path), *secret(site, tmp_path, "clear"))
    assert (first["content-type"], first["content-transfer-encoding"]) == ("application/pkcs8", "base64")
    pem = run("openssl", "pkey", "-inform", "DER", data=first.get_payload(decode=True)).stdout
    assert b"BEGIN PRIVATE KEY" in pem
    check(load_der_private_key(first.get_payload(decode=True), None), second)


@pytest.mark.req("E-175", "E-178")
def test_openssl_opens_a_key_that_travels_under_a_shared_key_or_the_key_of_the_certificate(
    site: Site, tmp_path: Path
) -> None:
    Curl.require()
    asked = placeholder(tmp_path, {serverkeygen.DECRYPT_KEY_IDENTIFIER: b"\x01\x02"})
    first, second = keygen(site, asked, *secret(site, tmp_path, "sealed"))
    assert first["content-type"] == "application/pkcs7-mime; smime-type=server-generated-key"
    sealed, opened = tmp_path / "sealed.der", ("openssl", "cms", "-decrypt", "-inform", "DER", "-in")
    sealed.write_bytes(first.get_payload(decode=True))
    private = key_in(run(*opened, sealed, "-secretkeyid", "0102", "-secretkey", SHARED.hex()).stdout)
    certificate = check(private, second)

    # the next one, over TLS with this one and for it alone
    old, key = tmp_path / "old.pem", tmp_path / "old.key.pem"
    old.write_bytes(certificate.public_bytes(Encoding.PEM))
    key.touch(0o600)
    key.write_bytes(run("openssl", "pkey", "-inform", "DER", data=_pkcs8(private)).stdout)
    ski = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    asked = placeholder(
        tmp_path, {serverkeygen.ASYMMETRIC_DECRYPT_KEY_IDENTIFIER: ski}, subject=certificate.subject, san=san
    )
    first, second = keygen(site, asked, "--cert", old, "--key", key)
    sealed.write_bytes(first.get_payload(decode=True))
    renewed = check(key_in(run(*opened, sealed, "-recip", old, "-inkey", key).stdout), second)
    assert renewed.subject == certificate.subject and renewed.public_key() != certificate.public_key()
    kinds = [one["fields"].get("made_key") for one in site.campus.ask("audit.list", event="ldevid-renewed")]
    assert kinds == ["asymmetric"]


def _pkcs8(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.req("E-173", "E-176")
def test_bouncy_castle_takes_a_key_that_the_server_made(site: Site, tmp_path: Path) -> None:
    BouncyCastle.require()
    got, key = tmp_path / "certificate.pem", tmp_path / "key.der"
    with closing(BouncyCastle(site, tmp_path)) as client:
        for tls in ("1.2", "1.3"):
            asked = placeholder(tmp_path)
            assert client.keygen(tls, asked, site.credentials(f"made {tls}"), got, key) == tls
            certificate = x509.load_pem_x509_certificate(got.read_bytes())
            assert load_der_private_key(key.read_bytes(), None).public_key() == certificate.public_key()
