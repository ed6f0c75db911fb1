"""Which public keys we accept, and their fingerprints (RFC 5480, RFC 8017)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeGuard

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from est.certificates import parts
from est.errors import CertificateMalformed, KeyNotAccepted
from est.kept import KEPT, keep, kept_by_identity

_BEFORE_POINT = {
    "secp256r1": bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200"),
    "secp384r1": bytes.fromhex("3076301006072a8648ce3d020106052b81040022036200"),
}
"""SubjectPublicKeyInfo up to the point, which always has the same length."""

_PLAIN = {
    len(before) + 1 + 2 * size: before + b"\x04"
    for before, size in ((_BEFORE_POINT["secp256r1"], 32), (_BEFORE_POINT["secp384r1"], 48))
}
"""How the SubjectPublicKeyInfo of an uncompressed point begins, by its whole length."""

MAX_EXPONENT = 1 << 256
"""RSA exponents stay below it (FIPS 186-5, section 5.4): each bit of a longer one is work for who verifies."""

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
_SHORT = 160
"""No SubjectPublicKeyInfo of P-256, P-384 or P-521 is longer; a stranger may send RSA keys that are, and many."""


@dataclass(frozen=True, slots=True)
class KeyRules:
    """Which keys pass: curves by name, RSA modulus sizes in bits (both ends included)."""

    curves: frozenset[str]
    rsa_bits: tuple[int, int]


SUBJECT_KEYS = KeyRules(frozenset({"secp256r1", "secp384r1"}), (2048, 4096))
"""Keys that we certify and that sign messages to us."""

ISSUER_KEYS = KeyRules(frozenset({"secp256r1", "secp384r1", "secp521r1"}), (2048, 8192))
"""Keys of other people's CAs."""


def is_ec(key: object) -> TypeGuard[ec.EllipticCurvePublicKey]:
    """Whether this is a public key on an elliptic curve.

    The classes of keys are abstract, and isinstance() with those is slow; what it says of a class is kept.
    """
    kind: Any = type(key)
    return _is_ec_class(kind)


@lru_cache(maxsize=64)
def _is_ec_class(kind: type) -> bool:
    return issubclass(kind, ec.EllipticCurvePublicKey)


def read_spki(der: bytes) -> object:
    """The key in a DER SubjectPublicKeyInfo, whatever its kind; ValueError, UnsupportedAlgorithm if it cannot be read.

    A key on an elliptic curve comes in many places, an agent's in its request and in its CSR, an owner's in every
    approval and certificate: it is read once, so that it is one object, and what is kept by that is made once.
    """
    return _read_short(der) if len(der) <= _SHORT else load_der_public_key(der)


@lru_cache(maxsize=KEPT)
def _read_short(der: bytes) -> object:
    key = load_der_public_key(der)
    if is_plain_spki(der):  # spki() would write the same octets again
        keep(_written, key, der)
    return key


def check_key(key: object, rules: KeyRules = SUBJECT_KEYS) -> PublicKey:
    """The key itself if the rules allow it, else KeyNotAccepted."""
    if is_ec(key):
        if key.curve.name in rules.curves:
            return key
        raise KeyNotAccepted(f"elliptic curve {key.curve.name} is not accepted")
    if isinstance(key, rsa.RSAPublicKey):
        low, high = rules.rsa_bits
        exponent = key.public_numbers().e
        if low <= key.key_size <= high and 65537 <= exponent < MAX_EXPONENT and exponent % 2:
            return key
        raise KeyNotAccepted(
            f"RSA keys must have {low} to {high} bits and an odd exponent of at least 65537 and less than 2^256"
        )
    raise KeyNotAccepted("only elliptic curve (P-256, P-384) and RSA keys are accepted")


def public_key_of(certificate: x509.Certificate, rules: KeyRules = SUBJECT_KEYS) -> PublicKey:
    """The certificate's key under the rules; raises KeyNotAccepted or CertificateMalformed."""
    return check_key(_key_of(certificate), rules)


@kept_by_identity
def _key_of(certificate: x509.Certificate) -> object:
    """Read from its octets by read_spki(): the library would make a key of its own for each certificate."""
    try:
        return read_spki(parts(certificate).spki)
    except UnsupportedAlgorithm as error:
        raise KeyNotAccepted("the certificate's key type is not supported") from error
    except ValueError as error:
        raise CertificateMalformed("the certificate's public key cannot be read") from error


def spki(key: x509.Certificate | PublicKey) -> bytes:
    """DER SubjectPublicKeyInfo, with elliptic curve points uncompressed; raises CertificateMalformed."""
    return _spki_of(key) if isinstance(key, x509.Certificate) else _write_spki(key)


@kept_by_identity
def _spki_of(certificate: x509.Certificate) -> bytes:
    try:
        return _write_spki(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateMalformed("the public key cannot be read") from error


_written: dict[int, tuple[object, bytes]] = {}


def _make_spki(key: object) -> bytes:
    try:
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateMalformed("the public key cannot be read") from error


_write_spki = kept_by_identity(_make_spki, _written)


def is_plain_spki(der: bytes) -> bool:
    """Whether these octets can be nothing but the SubjectPublicKeyInfo of an uncompressed point on P-256 or P-384."""
    before = _PLAIN.get(len(der))
    return before is not None and der.startswith(before)


def spki_of_point(curve: str, point: bytes) -> bytes:
    """DER SubjectPublicKeyInfo of an uncompressed point on P-256 or P-384 (curve by name; RFC 5480, section 2)."""
    return _BEFORE_POINT[curve] + point


def point_in(key: ec.EllipticCurvePublicKey) -> bytes:
    """The uncompressed point of a key on P-256 or P-384, for other curves as the library writes it."""
    before = _BEFORE_POINT.get(key.curve.name)
    if before is None:
        return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return spki(key)[len(before) :]


def spki_sha256(key: x509.Certificate | PublicKey) -> bytes:
    """SHA-256 of the DER SubjectPublicKeyInfo, of a certificate or a key."""
    return hashlib.sha256(spki(key)).digest()
