"""CMS EnvelopedData for one recipient, written only: how a private key made by the server travels
(RFC 5652, section 6; RFC 5753 for elliptic curves; RFC 7030, section 4.4.2).

AES-256-CBC for the content, a fresh key each time; that key goes wrapped under a shared key (kekri), under RSA (ktri)
or by ephemeral-static ECDH (kari). Randomness comes from the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from est import der as tlv
from est.errors import KeyNotAccepted
from est.keys import PublicKey

Random = Callable[[int], bytes]
"""So many octets that nobody can guess."""

NewKey = Callable[[ec.EllipticCurve], ec.EllipticCurvePrivateKey]
"""A fresh key on a curve."""

_ENVELOPED_DATA = tlv.oid("1.2.840.113549.1.7.3")
AES_256_CBC = "2.16.840.1.101.3.4.1.42"
_AES_256_CBC = tlv.oid(AES_256_CBC)
_RSA = tlv.sequence(tlv.oid("1.2.840.113549.1.1.1"), b"\x05\x00")
_EC_PUBLIC_KEY = tlv.sequence(tlv.oid("1.2.840.10045.2.1"))
_ECDH_SHA256 = tlv.oid("1.3.132.1.11.1")
_WRAPS = {
    16: tlv.sequence(tlv.oid("2.16.840.1.101.3.4.1.5")),
    24: tlv.sequence(tlv.oid("2.16.840.1.101.3.4.1.25")),
    32: tlv.sequence(tlv.oid("2.16.840.1.101.3.4.1.45")),
}
_KEY_OCTETS = 32


@dataclass(frozen=True, slots=True, repr=False)
class SharedKey:
    """A symmetric key that both sides hold, and the name that it has between them; 16, 24 or 32 octets."""

    identifier: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class RecipientKey:
    """A public key whose private half the recipient holds, and the subject key identifier that names it."""

    identifier: bytes
    key: PublicKey


def envelop(
    content: bytes, content_type: str, recipient: SharedKey | RecipientKey, *, random: Random, new_key: NewKey
) -> bytes:
    """DER ContentInfo with EnvelopedData around `content` (for a SignedData: its SEQUENCE, without ContentInfo).

    Raises KeyNotAccepted for a shared key of an impossible length.
    """
    content_key, vector = random(_KEY_OCTETS), random(16)
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES256(content_key), modes.CBC(vector)).encryptor()
    sealed = encryptor.update(padder.update(content) + padder.finalize()) + encryptor.finalize()
    if isinstance(recipient, SharedKey):
        info = _kekri(recipient, content_key)
    elif isinstance(recipient.key, rsa.RSAPublicKey):
        info = _ktri(recipient.identifier, recipient.key, content_key)
    else:
        info = _kari(recipient.identifier, recipient.key, content_key, new_key(recipient.key.curve))
    return tlv.sequence(
        _ENVELOPED_DATA,
        tlv.tlv(
            0xA0,
            tlv.sequence(
                tlv.integer(2),
                tlv.tlv(tlv.SET, info),
                tlv.sequence(
                    tlv.oid(content_type),
                    tlv.sequence(_AES_256_CBC, tlv.tlv(tlv.OCTET_STRING, vector)),
                    tlv.tlv(0x80, sealed),
                ),
            ),
        ),
    )


def _kekri(recipient: SharedKey, content_key: bytes) -> bytes:
    """KEKRecipientInfo (RFC 5652, section 6.2.3)."""
    wrap = _WRAPS.get(len(recipient.key))
    if wrap is None:
        raise KeyNotAccepted("a key that wraps another has 16, 24 or 32 octets")
    return tlv.tlv(
        0xA2,
        tlv.integer(4)
        + tlv.sequence(tlv.tlv(tlv.OCTET_STRING, recipient.identifier))
        + wrap
        + tlv.tlv(tlv.OCTET_STRING, aes_key_wrap(recipient.key, content_key)),
    )


def _ktri(identifier: bytes, key: rsa.RSAPublicKey, content_key: bytes) -> bytes:
    """KeyTransRecipientInfo (RFC 5652, section 6.2.1)."""
    return tlv.sequence(
        tlv.integer(2),
        tlv.tlv(0x80, identifier),
        _RSA,
        tlv.tlv(tlv.OCTET_STRING, key.encrypt(content_key, rsa_padding.PKCS1v15())),
    )


def _kari(
    identifier: bytes, key: ec.EllipticCurvePublicKey, content_key: bytes, ephemeral: ec.EllipticCurvePrivateKey
) -> bytes:
    """KeyAgreeRecipientInfo with an ephemeral key on the recipient's curve (RFC 5753, section 3.1)."""
    wrap = _WRAPS[_KEY_OCTETS]
    # ECC-CMS-SharedInfo: what the derived key is for, and its length in bits (RFC 5753, section 7.2)
    shared_info = tlv.sequence(
        wrap, tlv.tlv(0xA2, tlv.tlv(tlv.OCTET_STRING, (_KEY_OCTETS * 8).to_bytes(4, "big")))
    )  # fmt: skip
    secret = ephemeral.exchange(ec.ECDH(), key)
    key_key = X963KDF(algorithm=hashes.SHA256(), length=_KEY_OCTETS, sharedinfo=shared_info).derive(secret)
    point = ephemeral.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    originator = tlv.tlv(0xA1, _EC_PUBLIC_KEY + tlv.tlv(tlv.BIT_STRING, b"\x00" + point))
    named = tlv.tlv(0xA0, tlv.tlv(tlv.OCTET_STRING, identifier))
    return tlv.tlv(
        0xA1,
        tlv.integer(3)
        + tlv.tlv(0xA0, originator)
        + tlv.sequence(_ECDH_SHA256, wrap)
        + tlv.sequence(tlv.sequence(named, tlv.tlv(tlv.OCTET_STRING, aes_key_wrap(key_key, content_key)))),
    )
