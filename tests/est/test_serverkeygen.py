"""Keys made by the server: what is asked, how key and certificate travel, and that OpenSSL opens what we seal."""

from __future__ import annotations

import base64
import email
import os
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from est import cms, csr, der, profiles, serverkeygen, transfer
from est.enveloped import RecipientKey, SharedKey, envelop
from est.errors import BodyMalformed, CsrMalformed, KeyNotAccepted
from est.serverkeygen import ASYMMETRIC_DECRYPT_KEY_IDENTIFIER, DECRYPT_KEY_IDENTIFIER
from est.signer import KeySigner
from tests.est.pki import campus
from tests.support import NOW, key

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
NEW = key("made by the server")
ID_DATA = "1.2.840.113549.1.7.1"


def request(**attributes: bytes) -> bytes:
    kinds = {"shared": DECRYPT_KEY_IDENTIFIER, "own": ASYMMETRIC_DECRYPT_KEY_IDENTIFIER}
    asked = {kinds[name]: (value,) for name, value in attributes.items()}
    return csr.build(subject=profiles.name("nas 7"), key=key("placeholder"), attributes=asked)


def named(identifier: bytes) -> bytes:
    return der.tlv(der.OCTET_STRING, identifier)


@pytest.mark.req("E-171")
def test_key_and_signature_of_the_request_mean_nothing() -> None:
    broken = bytearray(request())
    broken[-1] ^= 1
    ask = serverkeygen.read(transfer.write_wrapped(bytes(broken)))
    assert ask.csr.subject == profiles.name("nas 7")
    assert (ask.wrapped, ask.shared, ask.own) == (True, None, None)
    for bad in (b"", b"MAA=", base64.b64encode(bytes(broken) + b"\0")):
        with pytest.raises((CsrMalformed, BodyMalformed)):
            serverkeygen.read(bad)


@pytest.mark.req("E-175")
def test_the_key_to_encrypt_with_is_named_by_one_identifier() -> None:
    assert serverkeygen.read(base64.b64encode(request(shared=named(b"k1")))).shared == b"k1"
    assert serverkeygen.read(base64.b64encode(request(own=named(b"k2")))).own == b"k2"
    for bad in ({"shared": named(b"k1"), "own": named(b"k2")}, {"own": named(b"")}, {"own": b"\x02\x01\x05"}):
        with pytest.raises(CsrMalformed):
            serverkeygen.read(base64.b64encode(request(**bad)))


@pytest.mark.req("E-173", "E-174", "E-176")
@pytest.mark.parametrize("wrapped", [True, False])
def test_the_answer_is_two_parts_that_a_mail_reader_can_take_apart(wrapped: bool) -> None:
    world = campus()
    reply = serverkeygen.reply(NEW, world.proxy, wrapped=wrapped)
    message = email.message_from_bytes(b"Content-Type: " + reply.media_type.encode() + b"\r\n\r\n" + reply.body)
    first, second = message.get_payload()
    assert first["content-transfer-encoding"] == second["content-transfer-encoding"] == "base64"
    assert first["content-type"] == "application/pkcs8"
    assert load_der_private_key(first.get_payload(decode=True), None).private_numbers() == NEW.private_numbers()
    assert second["content-type"] == "application/pkcs7-mime; smime-type=certs-only"
    assert cms.read_certs_only(second.get_payload(decode=True)) == (world.proxy,)


def _openssl(folder: Path, *arguments: str, ok: bool = True) -> bytes:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, timeout=30, check=False)
    assert (done.returncode == 0) is ok, done.stderr
    return done.stdout


def _seal(recipient: SharedKey | RecipientKey) -> bytes:
    return serverkeygen.seal_key(
        NEW, recipient, signer=KeySigner(key("campus proxy")), certificate=campus().proxy, now=NOW,
        random=os.urandom, new_key=ec.generate_private_key,
    )  # fmt: skip


def _check_package(signed: bytes) -> None:
    """What came out of the envelope is a SignedData of the server around the key."""
    info = der.sequence(der.oid(serverkeygen.ID_SIGNED_DATA), der.tlv(0xA0, signed))
    assert campus().proxy.public_bytes(Encoding.DER) in info
    assert serverkeygen.key_package(NEW) in info


@needs_openssl
@pytest.mark.interop
@pytest.mark.req("E-175")
@pytest.mark.parametrize("octets", [16, 24, 32])
def test_openssl_opens_a_key_that_was_sealed_under_a_shared_key(tmp_path: Path, octets: int) -> None:
    shared = SharedKey(b"\x01\x02", os.urandom(octets))
    (tmp_path / "sealed").write_bytes(_seal(shared))
    decrypt = ("cms", "-decrypt", "-inform", "DER", "-in", "sealed", "-secretkeyid", "0102", "-secretkey")
    _check_package(_openssl(tmp_path, *decrypt, shared.key.hex()))
    _openssl(tmp_path, *decrypt, os.urandom(octets).hex(), ok=False)


@needs_openssl
@pytest.mark.interop
@pytest.mark.req("E-175")
@pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA"])
def test_openssl_opens_a_key_that_was_sealed_for_a_key_of_the_client(tmp_path: Path, kind: str) -> None:
    own: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if kind == "RSA":
        own = rsa.generate_private_key(65537, 2048)
    else:
        own = ec.generate_private_key(ec.SECP256R1() if kind == "P-256" else ec.SECP384R1())
    name, identifier = profiles.name("client"), profiles.key_identifier(own.public_key())
    certificate = (
        x509.CertificateBuilder(name, name, own.public_key(), 5, NOW, NOW + timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier(identifier), False)
        .sign(own, hashes.SHA256())
    )
    (tmp_path / "client.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    private = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "client.key").write_bytes(private)
    (tmp_path / "sealed").write_bytes(_seal(RecipientKey(identifier, own.public_key())))
    decrypt = ("cms", "-decrypt", "-inform", "DER", "-in", "sealed", "-recip", "client.pem", "-inkey", "client.key")
    signed = _openssl(tmp_path, *decrypt)
    _check_package(signed)
    content = der.sequence(der.oid(serverkeygen.ID_SIGNED_DATA), der.tlv(0xA0, signed))
    (tmp_path / "signed").write_bytes(content)
    verify = ("cms", "-verify", "-inform", "DER", "-in", "signed", "-noverify", "-binary")
    assert _openssl(tmp_path, *verify) == serverkeygen.key_package(NEW)


@pytest.mark.req("E-175")
def test_a_shared_key_of_another_length_wraps_nothing() -> None:
    with pytest.raises(KeyNotAccepted):
        envelop(b"x", ID_DATA, SharedKey(b"k", bytes(17)), random=os.urandom, new_key=ec.generate_private_key)
    assert "SharedKey" in repr(SharedKey(b"k", b"secret"))
    assert "secret" not in repr(SharedKey(b"k", b"secret"))
