"""Which public keys we accept, and their fingerprints (RFC 5480, RFC 8017)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from est.errors import CertificateMalformed, KeyNotAccepted

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class KeyRules:
    """Which keys pass: curves by name, RSA modulus sizes in bits (both ends included)."""

    curves: frozenset[str]
    rsa_bits: tuple[int, int]


SUBJECT_KEYS = KeyRules(frozenset({"secp256r1", "secp384r1"}), (2048, 4096))
"""Keys that we certify and that sign messages to us."""

ISSUER_KEYS = KeyRules(frozenset({"secp256r1", "secp384r1", "secp521r1"}), (2048, 8192))
"""Keys of other people's CAs."""


def check_key(key: object, rules: KeyRules = SUBJECT_KEYS) -> PublicKey:
    """The key itself if the rules allow it, else KeyNotAccepted."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name in rules.curves:
            return key
        raise KeyNotAccepted(f"elliptic curve {key.curve.name} is not accepted")
    if isinstance(key, rsa.RSAPublicKey):
        low, high = rules.rsa_bits
        exponent = key.public_numbers().e
        if low <= key.key_size <= high and exponent >= 65537 and exponent % 2:
            return key
        raise KeyNotAccepted(f"RSA keys must have {low} to {high} bits and an odd exponent of at least 65537")
    raise KeyNotAccepted("only elliptic curve (P-256, P-384) and RSA keys are accepted")


def public_key_of(certificate: x509.Certificate, rules: KeyRules = SUBJECT_KEYS) -> PublicKey:
    """The certificate's key under the rules; raises KeyNotAccepted or CertificateMalformed."""
    try:
        key = certificate.public_key()
    except UnsupportedAlgorithm as error:
        raise KeyNotAccepted("the certificate's key type is not supported") from error
    except ValueError as error:
        raise CertificateMalformed("the certificate's public key cannot be read") from error
    return check_key(key, rules)


def spki(key: x509.Certificate | PublicKey) -> bytes:
    """DER SubjectPublicKeyInfo, with elliptic curve points uncompressed; raises CertificateMalformed."""
    try:
        public = key.public_key() if isinstance(key, x509.Certificate) else key
        return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateMalformed("the public key cannot be read") from error


def spki_sha256(key: x509.Certificate | PublicKey) -> bytes:
    """SHA-256 of the DER SubjectPublicKeyInfo, of a certificate or a key."""
    return hashlib.sha256(spki(key)).digest()
