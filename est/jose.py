"""Two encodings that every JOSE object here needs, whoever reads it: base64url and raw ECDSA signatures.

RFC 7515, section 2 and RFC 7518, section 3.4. Readers raise ValueError; the object's module turns that into its own
refusal.
"""

from __future__ import annotations

import base64
import binascii

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

# base64url is base64 with - and _ for + and /; what is neither becomes a character that the strict decoder refuses
_TO_BASE64 = bytes.maketrans(b"-_+/=", b"+/!!!")
_PADDING = (b"", b"", b"==", b"=")
_LAST = (b"", b"", b"AQgw", b"AEIMQUYcgkosw048")
"""Last characters that leave no stray bits, by length modulo 4."""


def base64url(octets: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")


def unbase64url(text: bytes) -> bytes:
    """The octets of canonical base64url: no padding, no other character, no stray bits; ValueError otherwise."""
    rest = len(text) % 4
    if rest and text[-1] not in _LAST[rest]:
        raise ValueError("not canonical base64url")
    try:
        return binascii.a2b_base64(text.translate(_TO_BASE64) + _PADDING[rest], strict_mode=True)
    except binascii.Error as error:
        raise ValueError("not base64url") from error


def write_ecdsa(signature: bytes, half: int) -> bytes:
    """r and s, `half` octets each, of a DER Ecdsa-Sig-Value."""
    r, s = decode_dss_signature(signature)
    return r.to_bytes(half, "big") + s.to_bytes(half, "big")


def read_ecdsa(signature: bytes, half: int) -> bytes:
    """The DER Ecdsa-Sig-Value of r and s; ValueError if they do not have `half` octets each."""
    if len(signature) != 2 * half:
        raise ValueError(f"the signature does not have {2 * half} octets")
    return encode_dss_signature(int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))
