"""Certificate revocation lists: the bytes to be signed (RFC 5280, section 5).

Written with our own DER writer, an entry spliced from few pieces, because a list may have a million entries;
`est.profiles.assemble` puts the signature on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

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

ECDSA = {"secp256r1": tlv.oid("1.2.840.10045.4.3.2"), "secp384r1": tlv.oid("1.2.840.10045.4.3.3")}
"""Signature algorithms by curve, as OBJECT IDENTIFIER."""

_REASON_CODE = tlv.oid("2.5.29.21")
_AUTHORITY_KEY_IDENTIFIER = tlv.oid("2.5.29.35")
_CRL_NUMBER = tlv.oid("2.5.29.20")
_MAX_MINUTES = 10_000
_SECONDS = tuple(b"%02dZ" % second for second in range(60))


@dataclass(frozen=True, slots=True)
class Revoked:
    """One entry: certificate serial number, when, and why (a name in REASONS)."""

    serial: int
    at: datetime
    reason: str = "unspecified"


class EntryWriter:
    """Writes entries of a revokedCertificates list, one by one: about a microsecond each."""

    def __init__(self) -> None:
        self._minutes: dict[int, bytes] = {}
        self._reasons = {name: _reason_extension(code) for name, code in REASONS.items()}

    def write(self, number: bytes, at_seconds: int, reason: str) -> bytes:
        """DER entry for a serial number, its octets without leading zeros, and a moment in seconds since 1970.

        Raises ShapeNotPossible for a reason or a serial number that cannot be.
        """
        try:
            extension = self._reasons[reason]
            if number[0] & 0x80:
                number = b"\x00" + number
        except (KeyError, IndexError) as error:
            raise ShapeNotPossible("a CRL entry needs a known reason and a positive serial number") from error
        if len(number) > 21 or not number.strip(b"\x00"):
            raise ShapeNotPossible("a CRL entry needs a positive serial number of at most 20 octets")
        minute, second = divmod(at_seconds, 60)
        time = self._minutes.get(minute)
        if time is None:
            if len(self._minutes) >= _MAX_MINUTES:
                self._minutes.clear()
            time = self._minutes[minute] = tlv.write_time(datetime.fromtimestamp(minute * 60, UTC))[:-3]
        body = bytes((tlv.INTEGER, len(number))) + number + time + _SECONDS[second] + extension
        return bytes((tlv.SEQUENCE, len(body))) + body


def crl_to_be_signed(
    issuer: x509.Name,
    *,
    issuer_key: ec.EllipticCurvePublicKey,
    issuer_key_identifier: bytes,
    number: int,
    this_update: datetime,
    next_update: datetime,
    entries: Iterable[Revoked] | bytes,
) -> bytes:
    """DER TBSCertList, version 2, with CRLNumber and authority key identifier.

    `entries` as bytes are what an EntryWriter wrote, one after the other. Raises ShapeNotPossible for a reason, number
    or serial that cannot be.
    """
    if issuer_key.curve.name not in ECDSA:
        raise ShapeNotPossible("issuing keys are on P-256 or P-384")
    if not 0 <= number < 1 << 159 or next_update <= this_update:
        raise ShapeNotPossible("a CRL has a number of at most 159 bits and dates in order")
    if not isinstance(entries, bytes):
        writer = EntryWriter()
        entries = b"".join(
            writer.write(_octets(entry.serial), int(entry.at.timestamp()), entry.reason) for entry in entries
        )
    extensions = tlv.sequence(
        tlv.sequence(
            _AUTHORITY_KEY_IDENTIFIER,
            tlv.tlv(tlv.OCTET_STRING, tlv.sequence(tlv.tlv(0x80, issuer_key_identifier))),
        ),
        tlv.sequence(_CRL_NUMBER, tlv.tlv(tlv.OCTET_STRING, tlv.integer(number))),
    )
    parts = [
        tlv.integer(1),
        tlv.sequence(ECDSA[issuer_key.curve.name]),
        issuer.public_bytes(),
        tlv.write_time(this_update),
        tlv.write_time(next_update),
    ]
    if entries:  # an absent list, not an empty one, means that nothing is revoked (RFC 5280, section 5.1.2.6)
        parts += [tlv.header(tlv.SEQUENCE, len(entries)), entries]
    parts.append(tlv.tlv(0xA0, extensions))
    # joined once: a million entries are fifty megabytes, and no other thread runs while they are copied
    return b"".join((tlv.header(tlv.SEQUENCE, sum(map(len, parts))), *parts))


def _octets(serial: int) -> bytes:
    if serial <= 0:
        raise ShapeNotPossible("a CRL entry needs a positive serial number")
    return serial.to_bytes((serial.bit_length() + 7) // 8, "big")


def _reason_extension(code: int) -> bytes:
    if code == 0:
        return b""
    return tlv.sequence(tlv.sequence(_REASON_CODE, tlv.tlv(tlv.OCTET_STRING, tlv.tlv(0x0A, bytes((code,))))))
