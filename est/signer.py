"""Signer: the one shape in which private keys reach the protocol packages, so that PKCS#11 or TPM fit in later."""

from __future__ import annotations

import hashlib
from typing import Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed


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


_OVER_DIGEST = {
    "sha256": (hashlib.sha256, ec.ECDSA(Prehashed(hashes.SHA256()))),
    "sha384": (hashlib.sha384, ec.ECDSA(Prehashed(hashes.SHA384()))),
}


def signed_form(data: bytes, key: ec.EllipticCurvePublicKey) -> tuple[bytes, ec.ECDSA]:
    """What to hand to a key of this curve for an ECDSA signature over `data`: its digest.

    Told a hash to use, the library asks its abstract classes each time whether it is one. And hashlib lets other
    threads run, of which a CRL of a million entries takes a tenth of a second.
    """
    digest, algorithm = _OVER_DIGEST[hash_for(key).name]
    return digest(data).digest(), algorithm


class KeySigner:
    """A Signer over a key held in memory."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self._public = key.public_key()

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(*signed_form(data, self._public))
