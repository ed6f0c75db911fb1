"""Two encodings that every JOSE object here needs, whoever reads it: base64url and raw ECDSA signatures.

RFC 7515, section 2 and RFC 7518, section 3.4. Readers raise ValueError; the object's module turns that into its own
refusal.
"""

from __future__ import annotations

import binascii

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

# base64url is base64 with - and _ for + and /; what is neither becomes a character that the strict decoder refuses
_TO_BASE64 = bytes.maketrans(b"-_+/=", b"+/!!!")
_TO_BASE64URL = bytes.maketrans(b"+/", b"-_")
_PADDING = (b"", b"", b"==", b"=")
_LAST = (b"", b"", b"AQgw", b"AEIMQUYcgkosw048")
"""Last characters that leave no stray bits, by length modulo 4."""


def base64url(octets: bytes) -> str:
    """base64url without padding."""
    # rstrip() first: translate() with characters to be left out takes half as long again for the whole text
    return binascii.b2a_base64(octets, newline=False).rstrip(b"=").translate(_TO_BASE64URL).decode("ascii")


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
    """The DER Ecdsa-Sig-Value of r and s; ValueError if they do not have `half` octets each, of at most 48."""
    if len(signature) != 2 * half:
        raise ValueError(f"the signature does not have {2 * half} octets")
    r, s = _integer(signature[:half]), _integer(signature[half:])
    return b"\x30%c%b%b" % (len(r) + len(s), r, s)


def _integer(octets: bytes) -> bytes:
    """DER INTEGER of an unsigned number; by hand, since going by way of Python's numbers costs ten times as much."""
    octets = octets.lstrip(b"\0")
    if not octets or octets[0] & 0x80:
        octets = b"\0" + octets
    return b"\x02%c%b" % (len(octets), octets)
