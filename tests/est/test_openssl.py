"""OpenSSL reads what we make, and we read what OpenSSL makes."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from est import chains, cms, csr, profiles
from est.errors import ChainNotTrusted, CmsNotAccepted, EstError
from est.signer import KeySigner
from tests.est.pki import YEAR, campus, odd, sign, terms
from tests.support import NOW, key

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl program"),
]
CONTENT = b'{"ietf-voucher:voucher":{}}'
AT = str(int(NOW.timestamp()))
URI = "spiffe://campus.example/agent/0b6f0c1e-6a1e-4a8e-9a63-1c0a4c0f2a11"


def openssl(folder: Path, *arguments: str, ok: bool = True) -> str:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, timeout=30)
    assert (done.returncode == 0) is ok, done.stderr.decode()
    return done.stdout.decode(errors="replace")


def pem(folder: Path, name: str, certificate: x509.Certificate) -> str:
    (folder / name).write_bytes(certificate.public_bytes(Encoding.PEM))
    return name


def pem_key(folder: Path, name: str, private: str) -> str:
    (folder / name).write_bytes(key(private).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return name


@pytest.mark.req("B-401", "B-402", "B-406", "B-412")
@pytest.mark.parametrize("content_type", [cms.ID_CT_ANIMA_JSON_VOUCHER, cms.ID_DATA])
def test_openssl_verifies_what_we_seal(tmp_path: Path, content_type: str) -> None:
    world = campus()
    sealed = cms.seal(
        CONTENT,
        content_type=content_type,
        signer=KeySigner(key("campus proxy")),
        certificate=world.proxy,
        certificates=(world.ca,),
        signing_time=NOW,
    )
    (tmp_path / "v.cms").write_bytes(sealed)
    root = pem(tmp_path, "root.pem", world.root)
    verify = ("cms", "-verify", "-inform", "DER", "-binary", "-in", "v.cms", "-CAfile", root, "-attime", AT)
    assert openssl(tmp_path, *verify, "-purpose", "any") == CONTENT.decode()
    other = pem(tmp_path, "other.pem", campus("second").root)
    openssl(tmp_path, *verify[:-3], other, "-attime", AT, "-purpose", "any", ok=False)
    (tmp_path / "v.cms").write_bytes(sealed.replace(b"voucher:voucher", b"voucher:vaucher"))
    openssl(tmp_path, *verify, "-purpose", "any", ok=False)
    structure = openssl(tmp_path, "asn1parse", "-inform", "DER", "-in", "v.cms")
    assert structure.count(":03" if content_type != cms.ID_DATA else ":01") >= 1


@pytest.mark.req("B-402", "B-405", "B-407", "B-409", "B-411")
def test_we_read_what_openssl_seals(tmp_path: Path) -> None:
    world = campus()
    (tmp_path / "v.json").write_bytes(CONTENT)
    signer = pem(tmp_path, "signer.pem", world.proxy)
    private = pem_key(tmp_path, "key.pem", "campus proxy")
    chain = pem(tmp_path, "ca.pem", world.ca)
    sign_ = (
        *("cms", "-sign", "-binary", "-nodetach", "-in", "v.json", "-signer", signer, "-inkey", private),
        *("-certfile", chain, "-nosmimecap", "-outform", "DER", "-out", "v.cms"),
    )
    both = (cms.ID_DATA, cms.ID_CT_ANIMA_JSON_VOUCHER)

    def unseal() -> cms.SignedData:
        return cms.unseal((tmp_path / "v.cms").read_bytes(), content_types=both)

    for extra, content_type, version in (
        ((), cms.ID_DATA, 1),
        (("-econtent_type", cms.ID_CT_ANIMA_JSON_VOUCHER), cms.ID_CT_ANIMA_JSON_VOUCHER, 3),
        (("-keyid",), cms.ID_DATA, 3),
        (("-md", "sha384"), cms.ID_DATA, 1),
        (("-md", "sha512"), cms.ID_DATA, 1),
    ):
        openssl(tmp_path, *sign_, *extra)
        message = unseal()
        assert (message.content, message.content_type, message.version) == (CONTENT, content_type, version)
        assert message.signer == world.proxy
        assert set(message.certificates) == {world.proxy, world.ca}
        assert message.signing_time is not None
    for extra in (("-md", "sha1"), ("-noattr",), ("-nocerts",)):
        openssl(tmp_path, *sign_, *extra)
        with pytest.raises(CmsNotAccepted):
            unseal()
    second = (pem(tmp_path, "second.pem", campus("second").proxy), pem_key(tmp_path, "second.key", "second proxy"))
    openssl(tmp_path, *sign_, "-signer", second[0], "-inkey", second[1])
    with pytest.raises(CmsNotAccepted, match="more than one signer"):
        unseal()
    openssl(tmp_path, *sign_[:2], "-stream", "-indef", *sign_[2:])
    with pytest.raises(EstError):
        unseal()


@pytest.mark.req("B-412", "E-205")
def test_openssl_verifies_every_shape_and_shows_what_was_meant(tmp_path: Path) -> None:
    world = campus()
    root, ca = pem(tmp_path, "root.pem", world.root), pem(tmp_path, "ca.pem", world.ca)
    under = terms(world.ca)._replace(crl_url="http://pki.example/crl/agents.crl", issuer_url="http://pki.example/ca")
    name, public = profiles.name(URI[-36:]), key("subject").public_key()
    private = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.32473.2026.1.2"), b"\x16\x01a")
    shapes = {
        "agent": (
            profiles.agent(under, name, public, identifier=URI, extra_extensions=[(private, False)]),
            ("sslclient", "sslserver"),
            (
                f"URI:{URI}",
                "TLS Web Client Authentication, TLS Web Server Authentication",
                "1.3.6.1.4.1.32473.2026.1.2",
            ),
        ),
        "ldevid": (
            profiles.ldevid(under, name, public, identifier=URI),
            ("sslclient",),
            (f"URI:{URI}", "TLS Web Client Authentication\n"),
        ),
        "registrar": (
            profiles.registrar(under, name, public, dns_names=["registrar.example"]),
            ("sslserver", "sslclient"),
            ("DNS:registrar.example", "CMC Registration Authority"),
        ),
        "radius": (
            profiles.radius_server(under, name, public, dns_names=["radius.example"]),
            ("sslserver",),
            ("DNS:radius.example", "TLS Web Server Authentication\n"),
        ),
        "https": (
            profiles.https_server(under, name, public, dns_names=["localhost"]),
            ("sslserver",),
            ("DNS:localhost",),
        ),
        "infrastructure": (
            profiles.infrastructure_client(under, name, public, identifier=URI),
            ("sslclient",),
            (f"URI:{URI}",),
        ),
        "authority": (
            profiles.registration_authority(under, name, public, identifier=URI),
            ("sslclient",),
            (f"URI:{URI}",),
        ),
    }
    for kind, (shape, purposes, texts) in shapes.items():
        leaf = pem(tmp_path, f"{kind}.pem", sign(shape, key("campus ca")))
        verify = ("verify", "-CAfile", root, "-untrusted", ca, "-attime", AT, "-x509_strict")
        if kind == "agent":  # no subject key identifier, which -x509_strict does not ask of an end entity either
            assert "Subject Key Identifier" not in openssl(tmp_path, "x509", "-in", leaf, "-noout", "-text")
        for purpose in ("sslclient", "sslserver"):
            openssl(tmp_path, *verify, "-purpose", purpose, leaf, ok=purpose in purposes)
        shown = openssl(tmp_path, "x509", "-in", leaf, "-noout", "-text")
        for text in (*texts, "CA:FALSE", "Digital Signature\n", "URI:http://pki.example/crl/agents.crl"):
            assert text in shown, (kind, text)
        assert shown.count("X509v3 Subject Alternative Name") == 1
        assert shown.count("CMC Registration Authority") == (1 if kind in ("registrar", "authority") else 0)
    openssl(tmp_path, "verify", "-CAfile", root, "-attime", AT, "-x509_strict", ca)


@pytest.mark.req("E-70")
def test_openssl_verifies_our_request_and_we_read_its(tmp_path: Path) -> None:
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(URI)])
    (tmp_path / "ours.der").write_bytes(
        csr.build(subject=profiles.name("a", "b"), key=key("csr"), san=san, challenge_password=b"abc")
    )
    shown = openssl(tmp_path, "req", "-inform", "DER", "-in", "ours.der", "-noout", "-verify", "-text")
    for text in (f"URI:{URI}", "challengePassword", "O = b, CN = a"):
        assert text in shown
    pem_key(tmp_path, "key.pem", "csr")
    openssl(
        tmp_path,
        *("req", "-new", "-key", "key.pem", "-subj", "/CN=x", "-addext", f"subjectAltName=URI:{URI}"),
        *("-outform", "DER", "-out", "theirs.der"),
    )
    request = csr.read((tmp_path / "theirs.der").read_bytes())
    assert (request.subject.rfc4514_string(), request.san) == ("CN=x", san)


def test_openssl_reads_our_crl_and_our_certs_only(tmp_path: Path) -> None:
    world = campus()
    tbs = profiles.crl_to_be_signed(
        world.ca.subject,
        issuer_key=key("campus ca").public_key(),
        issuer_key_identifier=chains.ski_of(world.ca) or b"",
        number=7,
        this_update=NOW,
        next_update=NOW + timedelta(days=7),
        entries=[profiles.Revoked(world.proxy.serial_number, NOW, "keyCompromise")],
    )
    crl = profiles.assemble(tbs, KeySigner(key("campus ca")).sign(tbs), key("campus ca").public_key())
    (tmp_path / "list.crl").write_bytes(crl)
    root, ca = pem(tmp_path, "root.pem", world.root), pem(tmp_path, "ca.pem", world.ca)
    shown = openssl(tmp_path, "crl", "-inform", "DER", "-in", "list.crl", "-noout", "-text", "-CAfile", ca)
    for text in ("X509v3 CRL Number", "Key Compromise", "Serial Number: 4D"):
        assert text in shown
    openssl(tmp_path, "crl", "-inform", "DER", "-in", "list.crl", "-out", "list.pem")
    leaf = pem(tmp_path, "leaf.pem", world.proxy)
    verify = ("verify", "-CAfile", root, "-untrusted", ca, "-attime", AT)
    openssl(tmp_path, *verify, leaf)
    openssl(tmp_path, *verify, "-crl_check", "-CRLfile", "list.pem", leaf, ok=False)
    (tmp_path / "ca.p7").write_bytes(cms.write_certs_only([world.root, world.ca]))
    shown = openssl(tmp_path, "pkcs7", "-inform", "DER", "-in", "ca.p7", "-print_certs")
    assert shown.count("BEGIN CERTIFICATE") == 2
    openssl(tmp_path, *("crl2pkcs7", "-nocrl", "-certfile", root, "-outform", "DER", "-out", "theirs.p7"))
    assert cms.read_certs_only((tmp_path / "theirs.p7").read_bytes()) == (world.root,)


@pytest.mark.req("B-407")
def test_a_certificate_signed_with_sha1_makes_no_path(tmp_path: Path) -> None:
    pem_key(tmp_path, "ca.key", "sha1 ca")
    pem_key(tmp_path, "leaf.key", "sha1 leaf")
    openssl(
        tmp_path, *("req", "-x509", "-key", "ca.key", "-subj", "/CN=ca", "-days", "3650", "-out", "ca.pem", "-sha256")
    )
    openssl(tmp_path, *("req", "-new", "-key", "leaf.key", "-subj", "/CN=leaf", "-out", "leaf.csr"))
    anchor = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    (tmp_path / "ext").write_text("basicConstraints=CA:FALSE\n")
    issue = (
        "x509",
        "-req",
        "-extfile",
        "ext",
        "-in",
        "leaf.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-days",
        "30",
        "-out",
        "leaf.pem",
    )
    for digest in ("sha256", "sha1"):
        openssl(tmp_path, *issue, f"-{digest}")
        leaf = x509.load_pem_x509_certificate((tmp_path / "leaf.pem").read_bytes())
        at = leaf.not_valid_before_utc
        if digest == "sha1":
            with pytest.raises(ChainNotTrusted):
                chains.check(leaf, [], chains.TrustAnchors([anchor]), at=at, policy=chains.IDEVID)
        else:
            chains.check(leaf, [], chains.TrustAnchors([anchor]), at=at, policy=chains.IDEVID)


@pytest.mark.req("B-159")
def test_openssl_and_we_agree_on_a_device_that_never_expires(tmp_path: Path) -> None:
    maker = odd("maker", key("maker"), key("maker"), extensions=[(x509.BasicConstraints(True, None), True)])
    device = odd(
        "device",
        key("device"),
        key("maker"),
        issuer=maker,
        not_before=NOW - YEAR,
        not_after=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    )
    root, leaf = pem(tmp_path, "maker.pem", maker), pem(tmp_path, "device.pem", device)
    openssl(tmp_path, "verify", "-CAfile", root, "-attime", AT, leaf)
    chains.check(device, [], chains.TrustAnchors([maker]), at=NOW, policy=chains.IDEVID)
