"""Certificate revocation lists: the bytes to be signed, and a path held against those at hand (RFC 5280, 5 and 6.3).

Lists come in as arguments: nothing is fetched here. Written with our own DER writer because a list of 100,000 entries
must not stop the appliance for seconds; `est.profiles.assemble` puts the signature on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from est import der as tlv
from est.certificates import extensions_of
from est.errors import BodyMalformed, CertificateRevoked, RevocationUnknown, ShapeNotPossible
from est.keys import ISSUER_KEYS, public_key_of

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


def read_crl(body: bytes) -> x509.CertificateRevocationList:
    """A list in DER or PEM form; raises BodyMalformed. Who signed it is asked when a path is held against it."""
    try:
        found = x509.load_pem_x509_crl(body) if body[:1] == b"-" else x509.load_der_x509_crl(body)
        _ = (found.issuer, found.last_update_utc, found.next_update_utc, list(found.extensions))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BodyMalformed("not a certificate revocation list") from error
    return found


class RevocationLists:
    """The lists at hand.

    `demanded`: a certificate that names a distribution point needs a current list of its issuer. Lists with critical
    extensions count as absent, because they speak of a part of the certificates only (RFC 5280, section 5.2).
    """

    def __init__(self, lists: Iterable[x509.CertificateRevocationList] = (), *, demanded: bool = False) -> None:
        self._lists = tuple(one for one in lists if not any(extension.critical for extension in one.extensions))
        self._demanded = demanded

    def check(self, path: Sequence[x509.Certificate], *, at: datetime) -> None:
        """Hold a checked path, end entity first and anchor last, against the lists; the anchor itself is not asked for.

        A list counts when its issuer's key in the path signed it and it is current. Raises CertificateRevoked,
        RevocationUnknown, CertificateMalformed, KeyNotAccepted.
        """
        for certificate, issuer in pairwise(path):
            lists = [one for one in self._lists if _is_by(one, issuer, at)]
            if any(one.get_revoked_certificate_by_serial_number(certificate.serial_number) for one in lists):
                raise CertificateRevoked(
                    "a certificate of the chain was revoked", serial=f"{certificate.serial_number:x}"
                )
            if self._demanded and not lists and _names_list(certificate):
                raise RevocationUnknown("no current revocation list of an issuer in the chain is at hand")


def _is_by(one: x509.CertificateRevocationList, issuer: x509.Certificate, at: datetime) -> bool:
    if one.issuer != issuer.subject or one.last_update_utc > at:
        return False
    if one.next_update_utc is None or one.next_update_utc <= at:
        return False
    for extension in extensions_of(issuer):
        if isinstance(extension.value, x509.KeyUsage) and not extension.value.crl_sign:
            return False
    return one.is_signature_valid(public_key_of(issuer, ISSUER_KEYS))


def _names_list(certificate: x509.Certificate) -> bool:
    return any(isinstance(one.value, x509.CRLDistributionPoints) for one in extensions_of(certificate))


def _reason_extension(code: int) -> bytes:
    if code == 0:
        return b""
    return tlv.sequence(tlv.sequence(_REASON_CODE, tlv.tlv(tlv.OCTET_STRING, tlv.tlv(0x0A, bytes((code,))))))
