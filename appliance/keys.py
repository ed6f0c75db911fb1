"""Key files, and small secrets sealed under one of them (design decision D-5).

Keys are PKCS#8, encrypted with scrypt and AES-256, mode 0600, never written over. Passphrases arrive as bytes; where
they come from (file, systemd credential, prompt) is the composition root's business.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.base import Cipher
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from appliance.errors import (
    KeyFileExists,
    KeyFileExposed,
    KeyFileMissing,
    KeyMalformed,
    KeyMismatch,
    PassphraseWrong,
)
from est import der as tlv
from est.certificates import pem_certificates
from est.keys import spki
from est.signer import KeySigner

_SEALED_VERSION = b"\x01"
_NONCE_BYTES = 12
_PBES2, _SCRYPT, _AES_256_CBC = "1.2.840.113549.1.5.13", "1.3.6.1.4.1.11591.4.11", "2.16.840.1.101.3.4.1.42"
KEY_COST = 16_384
"""scrypt's N for key files: 16 MiB and some 40 ms for every guess; OpenSSL reads no more without being told."""


def generate() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def write_private(path: Path, data: bytes) -> None:
    """Write a new file, mode 0600 from the start and on disk when this returns; KeyFileExists if there is one."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError as error:
        raise KeyFileExists("the file exists already", path=str(path)) from error
    except OSError as error:
        raise KeyFileMissing("the file cannot be made", path=str(path)) from error
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def replace_private(path: Path, data: bytes) -> None:
    """Write a file anew in one step, mode 0600: readers see the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    write_private(temporary, data)
    temporary.replace(path)
    sync_folder(path.parent)


def remove_private(path: Path) -> None:
    """Remove a file; it is gone from the folder when this returns, also after a power cut."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """What was made, renamed and removed in it until now outlasts a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_key(path: Path, key: ec.EllipticCurvePrivateKey, passphrase: bytes, *, cost: int = KEY_COST) -> None:
    """Save a key encrypted; an empty passphrase is refused."""
    write_private(path, encrypted(key, passphrase, cost=cost))


def encrypted(key: ec.EllipticCurvePrivateKey, passphrase: bytes, *, cost: int = KEY_COST) -> bytes:
    """The key as PEM of EncryptedPrivateKeyInfo: PBES2 with scrypt and AES-256-CBC (RFC 8018, RFC 7914).

    `cost` is scrypt's N, a power of two. Written here because the library's own writer stops at 2048 rounds of PBKDF2.
    """
    if not passphrase:
        raise PassphraseWrong("a key is never saved without a passphrase")
    salt, iv = os.urandom(16), os.urandom(16)
    derived = Scrypt(salt=salt, length=32, n=cost, r=8, p=1).derive(passphrase)
    padder = PKCS7(128).padder()
    plain = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    encryptor = Cipher(AES256(derived), CBC(iv)).encryptor()
    sealed = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    octets = tlv.OCTET_STRING
    derivation = tlv.sequence(
        tlv.oid(_SCRYPT),
        tlv.sequence(tlv.tlv(octets, salt), tlv.integer(cost), tlv.integer(8), tlv.integer(1), tlv.integer(32)),
    )
    scheme = tlv.sequence(tlv.oid(_AES_256_CBC), tlv.tlv(octets, iv))
    algorithm = tlv.sequence(tlv.oid(_PBES2), tlv.sequence(derivation, scheme))
    der = tlv.sequence(algorithm, tlv.tlv(octets, sealed))
    body = base64.encodebytes(der).replace(b"\n", b"")
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return b"\n".join((b"-----BEGIN ENCRYPTED PRIVATE KEY-----", *lines, b"-----END ENCRYPTED PRIVATE KEY-----", b""))


def read_private(path: Path) -> bytes:
    """The bytes of a file that only its owner may read; KeyFileMissing, KeyFileExposed."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise KeyFileExposed("others than the owner may read this file; its mode must be 0600", path=str(path))
            return file.read()
    except OSError as error:
        raise KeyFileMissing("the file cannot be read", path=str(path)) from error


def read_key(path: Path, passphrase: bytes) -> ec.EllipticCurvePrivateKey:
    """Open a key file; KeyFileMissing, KeyFileExposed, PassphraseWrong, KeyMalformed."""
    pem = read_private(path)
    if not passphrase:
        raise PassphraseWrong("a key is not opened without a passphrase", path=str(path))
    try:
        key = load_pem_private_key(pem, passphrase)
    except TypeError as error:
        raise KeyMalformed("the key file is not encrypted", path=str(path)) from error
    except ValueError as error:
        # one wrong passphrase in 256 decrypts to what looks whole and is no key: to the library that is another error
        if b"BEGIN ENCRYPTED PRIVATE KEY" in pem:
            raise PassphraseWrong(
                "the passphrase does not open this key, or the file was damaged", path=str(path)
            ) from error
        raise KeyMalformed("the key file cannot be read", path=str(path)) from error
    except UnsupportedAlgorithm as error:
        raise KeyMalformed("the key file is of a kind that is not used here", path=str(path)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in ("secp256r1", "secp384r1"):
        raise KeyMalformed("the key is not on P-256 or P-384", path=str(path))
    return key


def check_pair(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    """KeyMismatch unless the certificate is for this key."""
    if spki(key.public_key()) != spki(certificate):
        raise KeyMismatch("the private key is not the certificate's")


def read_signer(path: Path, passphrase: bytes, certificate: x509.Certificate | None = None) -> KeySigner:
    """A signer over a key file, compared with its certificate if one is given."""
    key = read_key(path, passphrase)
    if certificate is not None:
        check_pair(key, certificate)
    return KeySigner(key)


def write_certificates(path: Path, certificates: Sequence[x509.Certificate], *, replace: bool = False) -> None:
    """Save certificates as PEM, in order."""
    pem = b"".join(one.public_bytes(Encoding.PEM) for one in certificates)
    (replace_private if replace else write_private)(path, pem)


def read_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file, at least one; KeyFileMissing, KeyMalformed."""
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise KeyFileMissing("the certificate file cannot be read", path=str(path)) from error
    try:
        return tuple(pem_certificates(pem))
    except ValueError as error:
        raise KeyMalformed("the certificate file cannot be read", path=str(path)) from error


class SealingBox:
    """Seals small secrets (NAS secrets) for the store: AES-256-GCM under a key derived from a key file.

    The purpose is bound in: what was sealed for one record does not open as another's.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        scalar = key.private_numbers().private_value.to_bytes((key.key_size + 7) // 8)
        derived = HKDF(hashes.SHA256(), 32, None, b"appliance sealing box 1").derive(scalar)
        self._cipher = AESGCM(derived)

    def seal(self, secret: bytes, purpose: str) -> bytes:
        """Encrypt; each call gives other bytes."""
        nonce = os.urandom(_NONCE_BYTES)
        return _SEALED_VERSION + nonce + self._cipher.encrypt(nonce, secret, purpose.encode())

    def unseal(self, sealed: bytes, purpose: str) -> bytes:
        """Decrypt; KeyMalformed if it was not sealed by this key for this purpose."""
        if sealed[:1] != _SEALED_VERSION or len(sealed) < 1 + _NONCE_BYTES + 16:
            raise KeyMalformed("this is not a sealed value")
        nonce, body = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, body, purpose.encode())
        except InvalidTag as error:
            raise KeyMalformed("the sealed value does not open with this key for this purpose") from error
