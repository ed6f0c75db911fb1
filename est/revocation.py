"""Certificate revocation lists: the bytes to be signed, and what a finished one says (RFC 5280, section 5).

Written with our own DER writer because a list of 100,000 entries must not stop the appliance for seconds;
`est.profiles.assemble` puts the signature on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from est import der as tlv
from est.errors import ShapeNotPossible

REASONS: dict[str, int] = {
    "unspecified": 0,
    "keyCompromise": 1,
    "cACompromise": 2,
    "affiliationChanged": 3,
    "superseded": 4,
    "cessationOfOperation": 5,
    "certificateHold": 6,
    "privilegeWithdrawn": 9,
    "aACompromise": 10,
}
"""CRLReason names and numbers (RFC 5280, section 5.3.1)."""

_ECDSA = {"secp256r1": tlv.oid("1.2.840.10045.4.3.2"), "secp384r1": tlv.oid("1.2.840.10045.4.3.3")}
_REASON_CODE = tlv.oid("2.5.29.21")
_AUTHORITY_KEY_IDENTIFIER = tlv.oid("2.5.29.35")
_CRL_NUMBER = tlv.oid("2.5.29.20")


@dataclass(frozen=True, slots=True)
class Revoked:
    """One entry: certificate serial number, when, and why (a name in REASONS)."""

    serial: int
    at: datetime
    reason: str = "unspecified"


def crl_to_be_signed(
    issuer: x509.Name,
    *,
    issuer_key: ec.EllipticCurvePublicKey,
    issuer_key_identifier: bytes,
    number: int,
    this_update: datetime,
    next_update: datetime,
    entries: Iterable[Revoked],
) -> bytes:
    """DER TBSCertList, version 2, with CRLNumber and authority key identifier.

    Raises ShapeNotPossible for a reason, number or serial that cannot be.
    """
    if issuer_key.curve.name not in _ECDSA:
        raise ShapeNotPossible("issuing keys are on P-256 or P-384")
    if not 0 <= number < 1 << 159 or next_update <= this_update:
        raise ShapeNotPossible("a CRL has a number of at most 159 bits and dates in order")
    reasons = {name: _reason_extension(code) for name, code in REASONS.items()}
    rows = []
    for entry in entries:
        if entry.reason not in reasons or entry.serial <= 0:
            raise ShapeNotPossible("a CRL entry needs a known reason and a positive serial number")
        rows.append(tlv.sequence(tlv.integer(entry.serial), tlv.write_time(entry.at), reasons[entry.reason]))
    extensions = tlv.sequence(
        tlv.sequence(
            _AUTHORITY_KEY_IDENTIFIER,
            tlv.tlv(tlv.OCTET_STRING, tlv.sequence(tlv.tlv(0x80, issuer_key_identifier))),
        ),
        tlv.sequence(_CRL_NUMBER, tlv.tlv(tlv.OCTET_STRING, tlv.integer(number))),
    )
    return tlv.sequence(
        tlv.integer(1),
        tlv.sequence(_ECDSA[issuer_key.curve.name]),
        issuer.public_bytes(),
        tlv.write_time(this_update),
        tlv.write_time(next_update),
        # An absent list, not an empty one, means that nothing is revoked (RFC 5280, section 5.1.2.6).
        tlv.sequence(*rows) if rows else b"",
        tlv.tlv(0xA0, extensions),
    )


def _reason_extension(code: int) -> bytes:
    if code == 0:
        return b""
    return tlv.sequence(tlv.sequence(_REASON_CODE, tlv.tlv(tlv.OCTET_STRING, tlv.tlv(0x0A, bytes((code,))))))
