"""Signer: the one shape in which private keys reach the protocol packages, so that PKCS#11 or TPM fit in later."""

from __future__ import annotations

from typing import Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec


class Signer(Protocol):
    """A P-256 or P-384 key that may not be exportable."""

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        ...

    def sign(self, data: bytes) -> bytes:
        """ECDSA over SHA-256 (P-256) or SHA-384 (P-384) of `data`, DER-encoded Ecdsa-Sig-Value."""
        ...


def hash_for(key: ec.EllipticCurvePublicKey) -> hashes.SHA256 | hashes.SHA384:
    """The hash that goes with the curve (RFC 5480, section 4)."""
    return hashes.SHA384() if key.curve.name == "secp384r1" else hashes.SHA256()


class KeySigner:
    """A Signer over a key held in memory."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self._public = key.public_key()
        self._algorithm = ec.ECDSA(hash_for(self._public))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data, self._algorithm)
