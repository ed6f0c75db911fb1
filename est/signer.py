"""Signer: the one shape in which private keys reach the protocol packages, so that PKCS#11 or TPM fit in later."""

from __future__ import annotations

import hashlib
from typing import Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

_LONG = 1_048_576


class Signer(Protocol):
    """A P-256 or P-384 key that may not be exportable."""

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        ...

    def sign(self, data: bytes) -> bytes:
        """ECDSA over SHA-256 (P-256) or SHA-384 (P-384) of `data`, DER-encoded Ecdsa-Sig-Value."""
        ...


_OVER_DATA = {one.name: ec.ECDSA(one) for one in (hashes.SHA256(), hashes.SHA384())}


def hash_for(key: ec.EllipticCurvePublicKey) -> hashes.SHA256 | hashes.SHA384:
    """The hash that goes with the curve (RFC 5480, section 4)."""
    return hashes.SHA384() if key.curve.name == "secp384r1" else hashes.SHA256()


def signed_form(data: bytes, key: ec.EllipticCurvePublicKey) -> tuple[bytes, ec.ECDSA]:
    """What to hand to a key of this curve for an ECDSA signature over `data`: itself, or the digest of very much data.

    A CRL of a million entries takes a tenth of a second to hash, in which hashlib lets other threads run.
    """
    algorithm = hash_for(key)
    if len(data) < _LONG:
        return data, _OVER_DATA[algorithm.name]
    return hashlib.new(algorithm.name, data).digest(), ec.ECDSA(Prehashed(algorithm))


class KeySigner:
    """A Signer over a key held in memory."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self._public = key.public_key()
        self._algorithm = ec.ECDSA(hash_for(self._public))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public

    def sign(self, data: bytes) -> bytes:
        if len(data) < _LONG:
            return self._key.sign(data, self._algorithm)
        return self._key.sign(*signed_form(data, self._public))
