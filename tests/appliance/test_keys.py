"""Key files: encrypted, only the owner's, never written over; small secrets sealed for one purpose."""

from __future__ import annotations

import ssl
import stat
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from appliance import keys
from appliance.errors import (
    ApplianceError,
    KeyFileExists,
    KeyFileExposed,
    KeyFileMissing,
    KeyMalformed,
    KeyMismatch,
    PassphraseWrong,
)
from appliance.proxy import material
from appliance.registrar import manufacturers
from est import profiles
from est.signer import KeySigner
from tests.support import NOW, key

PASSPHRASE = b"correct horse"


def certificate(private: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    shape = profiles.root_ca(
        profiles.name("Test"), private.public_key(), serial=1, not_before=NOW, not_after=NOW + timedelta(days=1)
    )
    tbs = profiles.to_be_signed(shape, issuer_key=private.public_key())
    return x509.load_der_x509_certificate(profiles.assemble(tbs, KeySigner(private).sign(tbs), private.public_key()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    keys.write_key(tmp_path / "a.key", key("a"), PASSPHRASE)
    return tmp_path / "a.key"


def test_a_key_comes_back_from_its_file(path: Path) -> None:
    assert keys.read_key(path, PASSPHRASE).private_numbers() == key("a").private_numbers()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_openssl_opens_the_file_and_finds_scrypt(path: Path) -> None:
    shown = subprocess.run(["openssl", "asn1parse", "-in", path], capture_output=True, text=True, check=True).stdout
    assert "PBES2" in shown and "scrypt" in shown and "aes-256-cbc" in shown
    opened = subprocess.run(
        ["openssl", "pkey", "-in", path, "-passin", "stdin", "-noout", "-text"],
        input=PASSPHRASE.decode(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "prime256v1" in opened.stdout


@pytest.mark.parametrize("wrong", [b"wrong", b"", PASSPHRASE + b"\n"])
def test_a_wrong_passphrase_is_named_as_such(path: Path, wrong: bytes) -> None:
    with pytest.raises(PassphraseWrong):
        keys.read_key(path, wrong)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(KeyFileExposed):
        keys.read_key(path, PASSPHRASE)


def test_a_missing_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileMissing):
        keys.read_key(tmp_path / "none.key", PASSPHRASE)


def test_a_key_file_is_never_written_over(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(KeyFileExists):
        keys.write_key(path, key("b"), PASSPHRASE)
    assert path.read_bytes() == before


def test_a_key_is_never_saved_in_the_clear(tmp_path: Path) -> None:
    with pytest.raises(PassphraseWrong):
        keys.write_key(tmp_path / "b.key", key("b"), b"")
    assert not (tmp_path / "b.key").exists()


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"not a key",
        key("a").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        rsa.generate_private_key(65537, 2048).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSPHRASE)
        ),
        ec.generate_private_key(ec.SECP256K1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSPHRASE)
        ),
    ],
    ids=["empty", "rubbish", "not encrypted", "RSA", "another curve"],
)
def test_other_files_are_no_keys(tmp_path: Path, pem: bytes) -> None:
    keys.write_private(tmp_path / "x.key", pem)
    with pytest.raises(KeyMalformed):
        keys.read_key(tmp_path / "x.key", PASSPHRASE)


def test_no_wrong_passphrase_is_taken_for_another_fault(tmp_path: Path) -> None:
    """With one in 256 the padding is right by chance."""
    pem = key("a").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSPHRASE))
    keys.write_private(tmp_path / "x.key", pem)
    for number in range(1000):
        with pytest.raises(PassphraseWrong):
            keys.read_key(tmp_path / "x.key", b"wrong %d" % number)


@pytest.mark.slow
def test_a_damaged_key_file_raises_nothing_but_our_refusals(path: Path) -> None:
    good = path.read_bytes()
    refused = 0
    for at in range(40, len(good) - 40, 7):
        path.write_bytes(good[:at] + bytes((good[at] ^ 1,)) + good[at + 1 :])
        try:
            keys.read_key(path, PASSPHRASE)
        except (KeyMalformed, PassphraseWrong):
            refused += 1
    assert refused > 10


def test_a_key_is_held_against_its_certificate(path: Path) -> None:
    assert keys.read_signer(path, PASSPHRASE, certificate(key("a"))).public_key() == key("a").public_key()
    with pytest.raises(KeyMismatch):
        keys.read_signer(path, PASSPHRASE, certificate(key("b")))


def test_certificates_come_back_in_order_and_can_be_replaced(tmp_path: Path) -> None:
    first, second = certificate(key("a")), certificate(key("b"))
    path = tmp_path / "chain.pem"
    keys.write_certificates(path, [first, second])
    assert keys.read_certificates(path) == (first, second)
    with pytest.raises(KeyFileExists):
        keys.write_certificates(path, [second])
    keys.write_certificates(path, [second], replace=True)
    assert keys.read_certificates(path) == (second,)
    assert [file.name for file in tmp_path.iterdir()] == ["chain.pem"]
    path.write_bytes(b"rubbish")
    with pytest.raises(KeyMalformed):
        keys.read_certificates(path)


def test_a_sealed_secret_opens_with_its_key_for_its_purpose_only() -> None:
    box = keys.SealingBox(key("a"))
    sealed = box.seal(b"radius secret", "nas:1")
    assert b"radius" not in sealed
    assert box.seal(b"radius secret", "nas:1") != sealed
    assert keys.SealingBox(key("a")).unseal(sealed, "nas:1") == b"radius secret"
    with pytest.raises(KeyMalformed):
        box.unseal(sealed, "nas:2")
    with pytest.raises(KeyMalformed):
        keys.SealingBox(key("b")).unseal(sealed, "nas:1")


def test_a_damaged_sealed_secret_does_not_open() -> None:
    box = keys.SealingBox(key("a"))
    sealed = box.seal(b"s", "p")
    for at in range(len(sealed)):
        with pytest.raises(KeyMalformed):
            box.unseal(sealed[:at] + bytes((sealed[at] ^ 1,)) + sealed[at + 1 :], "p")
        with pytest.raises(KeyMalformed):
            box.unseal(sealed[:at], "p")


PEM_READERS: dict[str, Callable[[Path], object]] = {
    "a key's certificates": keys.read_certificates,
    "a manufacturer's": lambda file: manufacturers.read_pem(file.read_text()),
    "a proxy's material": lambda file: material.read_certificates(file, "proxy.anchors"),
}


@pytest.mark.parametrize("who", PEM_READERS)
def test_a_certificate_of_an_impossible_version_is_refused_in_words(who: str, tmp_path: Path) -> None:
    der = certificate(key("odd")).public_bytes(Encoding.DER)
    version_49 = der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x31", 1)
    assert version_49 != der
    file = tmp_path / "odd.pem"
    file.write_text(ssl.DER_cert_to_PEM_cert(version_49))
    with pytest.raises(ApplianceError):
        PEM_READERS[who](file)
